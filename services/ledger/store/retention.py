"""Owns the SQL of forgetting: ended holds down to their names, and the keys of requests that moved no money.

The keys of requests that moved money stay for ever, and so do the names of holds: somebody who repeats a payment after
a year, from a queue or a backup, must be told that it was made, not be paid or charged again. Both are small.

Tables are walked by their keys, a page at a time, so that no index is needed that each hold would pay for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby

import psycopg

from services.ledger.store.partitions import Connection, rows

PAGE_ROWS = 2_000
# Rows that are taken away together, while their accounts are locked.
BATCH_ROWS = 200

# By the key, without a lock.
_HOLDS_PAGE = """
    SELECT account_id, hold_id, status <> 'open' AND ended_at < %s FROM holds
    WHERE (account_id, hold_id) > (%s, %s) ORDER BY account_id, hold_id LIMIT %s
"""
# In the order of ids, as batches lock them. NO KEY: as they do.
_LOCK = """
    SELECT account_id FROM accounts WHERE account_id = ANY(%s) ORDER BY account_id COLLATE "C" FOR NO KEY UPDATE
"""
_REPLACE = """
    WITH gone AS (
        DELETE FROM holds WHERE (account_id, hold_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
            AND status <> 'open' AND ended_at < %s
        RETURNING account_id, hold_id
    )
    INSERT INTO ended_holds (account_id, hold_id) SELECT account_id, hold_id FROM gone ON CONFLICT DO NOTHING
"""
# Without the account's lock: who finds the key answers from it, who does not does the request, and either is right.
_REQUESTS_PAGE = """
    WITH page AS (
        SELECT account_id, request_id, sequence, created_at FROM requests
        WHERE (account_id, request_id) > (%s, %s) ORDER BY account_id, request_id LIMIT %s
    ), gone AS (
        DELETE FROM requests r USING page p
        WHERE r.account_id = p.account_id AND r.request_id = p.request_id AND p.sequence = 0 AND p.created_at < %s
        RETURNING 1
    )
    SELECT account_id, request_id, (SELECT count(*) FROM gone) FROM page
    ORDER BY account_id DESC, request_id DESC LIMIT 1
"""

_LOCKED_FOR_LONG = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)

Place = tuple[str, str]
BEGINNING: Place = ("", "")


async def forget_holds(connection: Connection, before: datetime, after: Place) -> tuple[Place | None, int]:
    """Replace one page of holds that ended before a moment by their names; where it ends, and how many they were.

    None: the page was the last. Accounts are locked for a moment, as batches lock them, so that whoever makes or ends a
    hold sees it here or there.
    """
    page = await rows(connection, _HOLDS_PAGE, (before, *after, PAGE_ROWS))
    old = [(account_id, hold_id) for account_id, hold_id, is_old in page if is_old]
    count = 0
    for start in range(0, len(old), BATCH_ROWS):
        batch = old[start : start + BATCH_ROWS]
        done, busy = await _replaced(connection, batch, before, skip=True)
        count += done
        # An account that is always busy has the most to forget: its turn in the queue of its lock comes, alone.
        for _, of_account in groupby(busy, key=lambda key: key[0]):
            with contextlib.suppress(*_LOCKED_FOR_LONG):  # the next walk comes by again
                count += (await _replaced(connection, list(of_account), before, skip=False))[0]
    return (page[-1][0], page[-1][1]) if len(page) == PAGE_ROWS else None, count


async def _replaced(
    connection: Connection, keys: Sequence[Place], before: datetime, *, skip: bool
) -> tuple[int, list[Place]]:
    """Replace these holds; how many, and those that were skipped since their account is locked by somebody."""
    async with connection.transaction():
        wanted = sorted({account_id for account_id, _ in keys})
        query = f"{_LOCK} SKIP LOCKED" if skip else _LOCK
        locked = {row[0] for row in await rows(connection, query, (wanted,))}
        free = [key for key in keys if key[0] in locked]
        accounts, holds = [key[0] for key in free], [key[1] for key in free]
        done = await connection.execute(_REPLACE, (accounts, holds, before))
    return done.rowcount, [key for key in keys if key[0] not in locked]


async def forget_requests(connection: Connection, before: datetime, after: Place) -> tuple[Place | None, int]:
    """Delete the keys of one page's requests from before a moment that moved no money; as `forget_holds`."""
    page = await rows(connection, _REQUESTS_PAGE, (*after, PAGE_ROWS, before))
    if not page:
        return None, 0
    account_id, request_id, count = page[0]
    return (account_id, request_id), count
