"""Owns the ledger's background jobs: letting holds lapse and grants expire on time, and making partitions ahead.

Nothing depends on it for correctness: every read and write lets what is due at its account happen first. It sees to it
that this shows in the journal also where nobody looks. Several workers are safe: the accounts' locks order them.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import psycopg

from services.kit.db import async_engine, connection_string, session_options
from services.kit.errors import ServiceError
from services.kit.logs import get_logger
from services.ledger.group_commit import GroupCommit
from services.ledger.service import Ledger
from services.ledger.settings import LedgerSettings
from services.ledger.store.partitions import create_months
from services.ledger.store.reads import Reads

_log = get_logger(__name__)

_ACCOUNTS_AT_ONCE = 200
_PARTITIONS_SECONDS = 6 * 3600.0


async def make_partitions(settings: LedgerSettings) -> None:
    """Make this month's and the next months' partitions, where they are missing."""
    url = connection_string(settings.database_url)
    async with await psycopg.AsyncConnection.connect(
        url, autocommit=True, connect_timeout=5, options=session_options(settings)
    ) as connection:
        made = await create_months(connection, datetime.now(UTC))
    if made:
        _log.info("partitions made", partitions=made)


async def sweep_forever(ledger: Ledger, settings: LedgerSettings, stop: asyncio.Event) -> None:
    """Sweep what is due, every `sweep_seconds`, until `stop` is set."""
    while not stop.is_set():
        full = False
        try:
            full = await ledger.sweep(_ACCOUNTS_AT_ONCE) == _ACCOUNTS_AT_ONCE
        except (ServiceError, OSError) as error:
            _log.warning("sweep failed; trying again", error=str(error))
        except Exception:  # noqa: BLE001 (a job that stops for ever at one error is worse)
            _log.exception("sweep failed; trying again")
        if not full:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), settings.sweep_seconds)


async def work(settings: LedgerSettings, stop: asyncio.Event) -> None:
    """Run the jobs until `stop` is set."""
    engine = async_engine(settings)
    commits = GroupCommit(settings)
    commits.start()
    sweeping = asyncio.create_task(sweep_forever(Ledger(commits, Reads(engine)), settings, stop))
    try:
        while not stop.is_set():
            try:
                await make_partitions(settings)
            except psycopg.Error:
                _log.exception("partitions could not be made; trying again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _PARTITIONS_SECONDS)
    finally:
        await sweeping
        await commits.stop()
        await engine.dispose()
