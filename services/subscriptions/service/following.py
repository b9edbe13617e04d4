"""Owns that an account which the ledger has suspended or closed is so here too.

The ledger calls nobody, so it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc
from sqlalchemy import Connection, Engine

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.subscriptions import store
from services.subscriptions.clients import LedgerClient
from services.subscriptions.clock import Clock
from services.subscriptions.stripe import mirror_store

_log = get_logger(__name__)


class LedgerFollowing:
    """The job that follows the ledger. Any number of these are safe side by side."""

    def __init__(self, engine: Engine, ledger: LedgerClient, *, clock: Clock) -> None:
        self._engine = engine
        self._ledger = ledger
        self._clock = clock

    def __call__(self) -> bool:
        """The job: follow, where the ledger answers; False, there is no more until later."""
        try:
            self._follow()
        except grpc.RpcError as error:
            _log.warning("the ledger does not say whom it has stopped", code=RemoteError.from_rpc(error).code.name)
        return False

    def _follow(self) -> None:
        for page in self._ledger.accounts_in("closed"):
            self._note("closed", page, store.close_accounts)
        suspended: list[str] = []
        for page in self._ledger.accounts_in("suspended"):
            self._note("suspended", page, store.suspend_accounts)
            suspended += page
        self._note("resumed", suspended, self._resume_others)

    def _note(self, what: str, account_ids: list[str], note: Callable[[Connection, Sequence[str]], list[str]]) -> None:
        with self._engine.begin() as connection:
            changed = note(connection, account_ids)
        for account_id in changed:
            _log.info("the account follows the ledger", account_id=account_id, now=what)

    def _resume_others(self, connection: Connection, suspended: Sequence[str]) -> list[str]:
        """Go on with all but these. Where somebody owes, what Stripe says is looked at again."""
        resumed = store.resume_accounts_but(connection, suspended)
        for account_id in resumed:
            mirror_store.look_by(connection, account_id, self._clock())
        return resumed
