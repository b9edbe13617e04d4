"""Owns that no hold lapses because the ledger was away: the settlement of its call may be waiting for the ledger.

While no server of the ledger reaches the database, nobody can end or extend a hold. So when one is back, the holds that
would have lapsed meanwhile live on for as long as a settlement may rest before it is tried again. Since when that is
stands in the database: each server says there every few seconds that it is there, and before its first batch after a
silence, whatever that came of: it was started, it or the database hung, or nothing came through between them.
"""

from __future__ import annotations

import asyncio
import time

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.db import connection_string, connection_words, session_options
from services.kit.logs import get_logger
from services.ledger.settings import LedgerSettings
from services.ledger.store.pipeline import Connection, Statement

_log = get_logger(__name__)

_BEAT_SECONDS = 2.0
# Silent for longer than this, the ledger was away: some beats may be late.
AWAY_SECONDS = 10
# The proxy's outbox rests for at most a minute between two tries, and then has all others to deliver, too.
GRACE_SECONDS = 120

# Three statements, so that each sees what was committed while the first one waited: of servers that are back at the
# same moment the first one finds the silence. All of it is our own.
_ALONE = Statement("SELECT FROM presence FOR NO KEY UPDATE")
_LIVE_ON = Statement(
    f"UPDATE holds SET expires_at = now() + interval '{GRACE_SECONDS} seconds' "  # noqa: S608
    # Nobody said it before migration 0005: then none of the holds there are is known to have lapsed.
    "FROM (SELECT coalesce(max(seen_at), '-infinity') AS seen_at FROM presence) AS last "
    f"WHERE seen_at < now() - interval '{AWAY_SECONDS} seconds' AND status = 'open' "
    f"AND expires_at > seen_at AND expires_at < now() + interval '{GRACE_SECONDS} seconds' RETURNING 1"
)
_THERE = Statement(
    "INSERT INTO presence (seen_at) VALUES (now()) ON CONFLICT (one) "
    "DO UPDATE SET seen_at = greatest(presence.seen_at, excluded.seen_at)"
)
_ATTENDED = sa.text(f"SELECT seen_at > now() - interval '{AWAY_SECONDS} seconds' FROM presence")  # noqa: S608


class Presence:
    """Says that this server is there."""

    def __init__(self, settings: LedgerSettings) -> None:
        self._settings = settings
        self._said_at = float("-inf")
        self._beating: asyncio.Task[None] | None = None

    @property
    def is_old(self) -> bool:
        """Whether it was last said so long ago that holds may have lapsed since: nothing is booked before it is."""
        return time.monotonic() - self._said_at > AWAY_SECONDS

    async def say(self, connection: Connection) -> None:
        """Say it, and let holds live on where nobody had for a while; outside of a transaction."""
        begun = time.monotonic()
        _, living_on, _ = await connection.ask((_ALONE, ()), (_LIVE_ON, ()), (_THERE, ()))
        self._said_at = begun
        if living_on:
            _log.warning("the ledger was away; holds live on", holds=len(living_on), grace_seconds=GRACE_SECONDS)

    def start(self) -> None:
        """Go on saying it, in the running loop."""
        self._beating = asyncio.create_task(self._say_for_ever())

    async def stop(self) -> None:
        """Say it no more."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])

    async def _say_for_ever(self) -> None:
        url = self._settings.database_url
        words = connection_words(url, "tollkeeper-ledger-presence", session_options(self._settings))
        while True:
            try:
                async with await Connection.opened(connection_string(url), **words) as connection:
                    while True:
                        await self.say(connection)
                        await asyncio.sleep(_BEAT_SECONDS)
            except Exception as error:  # noqa: BLE001 (a job that ends at one error is worse)
                _log.warning("the database was not told that the ledger is there", error=repr(error))
            await asyncio.sleep(_BEAT_SECONDS)


async def attended(engine: AsyncEngine) -> bool:
    """Whether some server is there. Else nothing lapses: a worker lets alone what a server could not be told of."""
    async with engine.connect() as connection:
        return bool((await connection.execute(_ATTENDED)).scalar())
