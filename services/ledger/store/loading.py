"""Owns the SQL that begins a batch: locks its accounts and reads what its operations need and is not remembered.

The locks on account rows, taken in the order of their ids so that two batches never wait for each other in a circle,
guard everything else of an account.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from prometheus_client import Histogram
from psycopg.rows import TupleRow

from services.ledger.model.book import Grant
from services.ledger.model.operations import (
    CreateHold,
    Debit,
    DeleteLimit,
    ExtendHold,
    OpenAccount,
    Operation,
    ReleaseHold,
    SetLimit,
    SetStatus,
    SettleHold,
    Touch,
    Undo,
)
from services.ledger.model.rows import (
    EntryKey,
    GrantRow,
    HoldKey,
    Loaded,
    PastRequest,
    RequestKey,
    SubjectKey,
)
from services.ledger.store.columns import (
    ACCOUNT,
    ENTRY,
    HOLD,
    USAGE,
    VERSION,
    book_of,
    entry_of,
    hold_of,
    usage_of,
)
from services.ledger.store.documents import limits_of
from services.ledger.store.pipeline import Asked, Connection, Statement
from services.ledger.store.remembered import RememberedAccount, subject_keys
from services.ledger.store.values import literals, texts

LOCK_WAIT = Histogram("tollkeeper_ledger_lock_wait_seconds", "How long a batch waited for its accounts' locks.")

_BEGIN = Statement("BEGIN")
_WAIT_AT_MOST = Statement("SELECT set_config('lock_timeout', %s::text, true)")  # for each lock, until the commit
# The transaction began right before its locks.
LOCKED_SECONDS = "extract(epoch FROM clock_timestamp() - now())::float8"
# FOR UPDATE in the order of ids, as Python sorts them, and how long the locks were waited for. NO KEY: nothing refers
# to the key. Rows that are as they are remembered are locked, and not given.
_LOCK_ACCOUNTS = Statement(f"""
    WITH locked AS MATERIALIZED (
        SELECT {ACCOUNT.names}, {VERSION} AS version FROM accounts
        WHERE account_id = ANY(%s::text[]) ORDER BY account_id COLLATE "C" FOR NO KEY UPDATE
    )
    SELECT *, {LOCKED_SECONDS} FROM locked
    WHERE (account_id, version) NOT IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))
""")  # noqa: S608 (names are columns.py's own)
# Holds that are there, and the names of those that ended long ago, as a status of its own.
_NAMED_HOLDS = "(account_id, hold_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
_NOTHING = {
    "text": "''",
    "bigint": "0",
    "boolean": "false",
    "timestamptz": "now()",
    "jsonb": "'[]'::jsonb",
    "bytea": "''::bytea",
}
_OF_ENDED = {"account_id": "account_id", "hold_id": "hold_id", "status": "'ended'"}
_READ_HOLDS = Statement(
    f"SELECT {HOLD.names} FROM holds WHERE {_NAMED_HOLDS} UNION ALL SELECT "  # noqa: S608
    + ", ".join(_OF_ENDED.get(name, _NOTHING[kind]) for name, kind, _ in HOLD.each)
    + f" FROM ended_holds WHERE {_NAMED_HOLDS}"
)
# The limits of keys and workspaces: those that operations name, and those of the holds they name.
_NAMED_SUBJECTS = (
    "SELECT account_id, scope, subject, limits FROM subject_limits "
    "WHERE (account_id, scope, subject) IN (SELECT * FROM unnest(%s::text[], %s::text[], %s::text[]))"
)
_READ_SUBJECTS = Statement(_NAMED_SUBJECTS)
_READ_ALL_SUBJECTS = Statement(f"""
    {_NAMED_SUBJECTS} UNION ALL
    SELECT s.account_id, s.scope, s.subject, s.limits
    FROM unnest(%s::text[], %s::text[]) AS n(account_id, hold_id)
    JOIN holds h USING (account_id, hold_id) JOIN subject_limits s ON s.account_id = h.account_id
    AND ((s.scope = 'key' AND s.subject = h.key_id) OR (s.scope = 'workspace' AND s.subject = h.workspace))
""")  # noqa: S608
_READ_REQUESTS = Statement(
    "SELECT account_id, request_id, body_hash, sequence FROM requests "
    "WHERE (account_id, request_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
)
_READ_ENTRIES = Statement(
    f"SELECT {ENTRY.names} FROM journal "  # noqa: S608
    "WHERE (account_id, sequence) IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))"
)
_READ_UNDONE = Statement(
    "SELECT account_id, sequence, amount FROM undone "
    "WHERE (account_id, sequence) IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))"
)
_READ_GRANTS = Statement(
    "SELECT account_id, grant_id, source, priority, sequence, expires_at, amount, rollover_cap, created_at, expired "
    "FROM grants WHERE (account_id, grant_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
)
_READ_OPEN_HOLDS = Statement(
    f"SELECT {HOLD.names} FROM holds WHERE account_id = ANY(%s::text[]) AND status = 'open'"  # noqa: S608
)
_READ_NEW_USAGE = Statement(
    f"SELECT {USAGE.names} FROM usage "  # noqa: S608
    "JOIN unnest(%s::text[], %s::bigint[]) AS n(of_account, after) ON account_id = of_account AND usage_number > after"
)
# As of each account's own time; the earliest, up to a bound. Both use the index holds_open.
_READ_LAPSED = Statement(
    f"SELECT {', '.join(f'h.{name}' for name, _, _ in HOLD.each)} "  # noqa: S608
    "FROM unnest(%s::text[], %s::timestamptz[]) AS d(account_id, moment) CROSS JOIN LATERAL ("
    "SELECT * FROM holds WHERE holds.account_id = d.account_id AND status = 'open' AND expires_at <= d.moment "
    "ORDER BY expires_at, sequence LIMIT %s::integer) h ORDER BY h.account_id, h.expires_at, h.sequence"
)
_READ_NEXT_LAPSE = Statement(
    "SELECT h.account_id, min(h.expires_at) "
    "FROM unnest(%s::text[], %s::timestamptz[]) AS d(account_id, moment) JOIN holds h USING (account_id) "
    "WHERE h.status = 'open' AND h.expires_at > d.moment GROUP BY h.account_id"
)
# Holds of one account that lapse together in one batch; the others do in the next.
MAX_LAPSED = 1000


class _Named:
    """The keys of the rows that operations name."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.holds: set[HoldKey] = set()
        self.created: set[HoldKey] = set()
        self.requests: set[RequestKey] = set()
        self.subjects: set[SubjectKey] = set()
        self.originals: set[EntryKey] = set()
        for operation in operations:
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        match operation:
            case CreateHold():
                self.created.add((operation.account_id, operation.hold_id))
                self.subjects.update(subject_keys(operation.account_id, operation.key_id, operation.workspace))
                return
            case SettleHold() | ReleaseHold():
                self.holds.add((operation.account_id, operation.hold_id))
                return
            case OpenAccount() | Touch():
                return
            case ExtendHold():
                self.holds.add((operation.account_id, operation.hold_id))
            case Debit():
                self.subjects.update(subject_keys(operation.account_id, operation.key_id, operation.workspace))
            case Undo():
                self.originals.add((operation.account_id, operation.sequence))
            case SetLimit() | DeleteLimit() if operation.subject:
                self.subjects.add((operation.account_id, operation.scope, operation.subject))
        if operation.request_id:
            self.requests.add((operation.account_id, operation.request_id))


async def load(
    connection: Connection,
    operations: Sequence[Operation],
    now: datetime,
    remembered: Mapping[str, RememberedAccount],
    *,
    lock_milliseconds: int | None = None,
) -> Loaded:
    """Begin a transaction, lock the accounts of these operations, and read what they need.

    What is remembered of an account is not read again, unless its row has changed since. Where everything is
    remembered, nothing is begun: `Loaded.unconfirmed` and `unread` say what `write` has to confirm.
    `lock_milliseconds`: wait no longer for each lock, where the session's own timeout is too long.
    """
    accounts = sorted({operation.account_id for operation in operations})
    loaded = Loaded(books={account_id: account.book for account_id, account in remembered.items()})
    unknown = [x for x in operations if not _recalled(x, remembered.get(x.account_id), loaded)]
    if not unknown:
        loaded.unconfirmed = {account_id: remembered[account_id].version for account_id in accounts}
        loaded.unread = {(x.account_id, x.hold_id) for x in operations if isinstance(x, CreateHold)}
        # Without the locks: what is read is of the versions that are confirmed, or those are not confirmed.
        await _load_due(connection, loaded, now)
        return loaded
    named = _Named(unknown)
    # Whether a hold is there already, or ended long ago, is read of all.
    named.created.update((x.account_id, x.hold_id) for x in operations if isinstance(x, CreateHold))
    known = literals([(account_id, each.version) for account_id, each in remembered.items()]) or [b"{}"] * 2
    _, _, locked, *rows = await connection.ask(
        (_BEGIN, ()),
        (_WAIT_AT_MOST, (b"%dms" % lock_milliseconds,)) if lock_milliseconds is not None else None,
        (_LOCK_ACCOUNTS, (texts(accounts), *known)),
        *_reads(named),
    )
    for row in locked:
        loaded.books[row[0]], loaded.versions[row[0]] = book_of(row[:-2]), row[-2]
    if locked:
        LOCK_WAIT.observe(locked[-1][-1])  # as long as for the last of them
    _take_in(loaded, rows)
    outdated = {row[0] for row in locked if row[0] in remembered}
    if outdated:
        loaded.outdated = True
        loaded.forget(outdated)
        for account_id in outdated:
            remembered[account_id].forget()
        again = _Named([x for x in operations if x.account_id in outdated])
        _take_in(loaded, await connection.ask(*_reads(again)))
    await _load_due(connection, loaded, now)
    await _load_written(connection, loaded, named)
    await _load_counted(connection, loaded, operations)
    return loaded


def _recalled(operation: Operation, account: RememberedAccount | None, loaded: Loaded) -> bool:
    """Take in the rows that an operation names from what is remembered of its account; whether that is all of them."""
    if account is None or not isinstance(operation, (CreateHold, SettleHold, ReleaseHold)):
        return False
    return account.recall(operation, loaded)


def _reads(named: _Named) -> list[Asked | None]:
    """The reads of what is named, as `_take_in` takes their rows."""
    return [
        _by(_READ_HOLDS, named.holds | named.created, again=True),
        _all_subjects(named),
        _by(_READ_REQUESTS, named.requests),
        _by(_READ_UNDONE, named.originals),
    ]


def _take_in(loaded: Loaded, read: Sequence[Sequence[TupleRow]]) -> None:
    """Take in the rows of `_reads`."""
    held, limited, asked, undone = read
    for row in held:
        if row[2] == "ended":
            loaded.ended.add((row[0], row[1]))
        else:
            loaded.holds[row[0], row[1]] = hold_of(row)
    for row in limited:
        loaded.subjects[row[0], row[1], row[2]] = limits_of(row[3])
    loaded.requests |= {(row[0], row[1]): PastRequest(row[2], row[3]) for row in asked}
    loaded.undone |= {(row[0], row[1]): row[2] for row in undone}


async def _load_due(connection: Connection, loaded: Loaded, now: datetime) -> None:
    """Of accounts where something is due: the holds that have lapsed, their limits, and when the next will."""
    # An account's time never goes back, also where another replica's clock, which touched it last, is ahead of ours.
    due = {
        account_id: max(now, book.touched_at)
        for account_id, book in loaded.books.items()
        if book.next_event_at is not None and book.next_event_at <= max(now, book.touched_at)
    }
    if not due:
        return
    moments = literals(list(due.items()))
    lapsed, upcoming = await connection.ask((_READ_LAPSED, [*moments, b"%d" % MAX_LAPSED]), (_READ_NEXT_LAPSE, moments))
    subjects: set[SubjectKey] = set()
    for row in lapsed:
        hold = loaded.holds.setdefault((row[0], row[1]), hold_of(row))
        loaded.lapsed.setdefault(hold.account_id, []).append(hold)
        subjects.update(subject_keys(hold.account_id, hold.key_id, hold.workspace))
    loaded.next_lapse.update({account_id: moment for account_id, moment in upcoming})  # noqa: C416
    for account_id, holds in loaded.lapsed.items():
        if len(holds) == MAX_LAPSED:  # there may be more: look again at once
            loaded.next_lapse[account_id] = due[account_id]
    for row in await _read(connection, _READ_SUBJECTS, subjects - loaded.subjects.keys()):
        loaded.subjects[row[0], row[1], row[2]] = limits_of(row[3])


async def _load_written(connection: Connection, loaded: Loaded, named: _Named) -> None:
    """The entries that replayed requests wrote, and those to be undone with the grants that they name."""
    entries = {(key[0], past.sequence) for key, past in loaded.requests.items() if past.sequence}
    entries |= {(h.account_id, h.sequence) for key, h in loaded.holds.items() if key in named.created}
    entries |= {(h.account_id, h.end_sequence) for h in loaded.holds.values() if h.status == "settled"}
    for row in await _read(connection, _READ_ENTRIES, entries | named.originals):
        loaded.entries[row[0], row[1]] = entry_of(row)
    grants = {
        (key[0], grant_id)
        for key in named.originals & loaded.entries.keys()
        for grant_id, _ in loaded.entries[key].grant_uses
        if grant_id
    }
    for row in await _read(connection, _READ_GRANTS, grants):
        account_id, grant_id, source, priority, order, expires_at, amount, rollover_cap, created_at, expired = row
        grant = Grant(grant_id, source, priority, order, expires_at, amount, 0, 0, rollover_cap)
        loaded.grants[account_id, grant_id] = GrantRow(grant, created_at, expired)


async def _load_counted(connection: Connection, loaded: Loaded, operations: Sequence[Operation]) -> None:
    """Of accounts to be closed or given a limit: their open holds, and what was used since it was counted."""
    closing = {x.account_id for x in operations if isinstance(x, SetStatus) and x.status == "closed"}
    # A limit that is ended and made again here is new, too.
    ended = {_limit_key(x) for x in operations if isinstance(x, DeleteLimit)}
    limiting: dict[str, int] = {}
    for operation in operations:
        if isinstance(operation, SetLimit) and (_limit_key(operation) in ended or _is_new(loaded, operation)):
            through = operation.counted.through if operation.counted else 0
            limiting[operation.account_id] = min(limiting.get(operation.account_id, through), through)
    if limiting or closing:
        (open_holds,) = await connection.ask((_READ_OPEN_HOLDS, (texts(sorted(closing | limiting.keys())),)))
        for row in open_holds:
            loaded.holds.setdefault((row[0], row[1]), hold_of(row))
    for row in await _read(connection, _READ_NEW_USAGE, limiting.items()):
        loaded.usage.setdefault(row[0], []).append(usage_of(row))


def _limit_key(operation: SetLimit | DeleteLimit) -> tuple[str, ...]:
    return operation.account_id, operation.scope, operation.subject, operation.unit, operation.window


def _is_new(loaded: Loaded, operation: SetLimit) -> bool:
    book = loaded.books.get(operation.account_id)
    if book is None:
        return False
    row = loaded.subjects.get((operation.account_id, operation.scope, operation.subject), ())
    there = row if operation.subject else book.limits
    wanted = (operation.scope, operation.unit, operation.window)
    return all((limit.scope, limit.unit, limit.window) != wanted for limit in there)


def _by(statement: Statement, keys: Collection[tuple[Any, ...]], *, again: bool = False) -> Asked | None:
    """A read by keys, if there are any. `again`: the query takes them twice."""
    if not keys:
        return None
    arguments = literals(list(keys))
    return statement, arguments * 2 if again else arguments


def _all_subjects(named: _Named) -> Asked | None:
    """The limits of the keys and workspaces that operations name, and of those of the holds they name."""
    if not named.subjects and not named.holds:
        return None
    subjects = literals(list(named.subjects)) if named.subjects else [b"{}"] * 3
    holds = literals(list(named.holds)) if named.holds else [b"{}"] * 2
    return _READ_ALL_SUBJECTS, [*subjects, *holds]


async def _read(connection: Connection, statement: Statement, keys: Collection[tuple[Any, ...]]) -> Sequence[TupleRow]:
    """Read by keys alone."""
    if not keys:
        return ()
    (rows,) = await connection.ask(_by(statement, keys))
    return rows
