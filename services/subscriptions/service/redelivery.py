"""Owns redelivery: ledger and proxy are told again what every account has been given and is allowed.

It is for after a restore, when they may know more of an account than this database does, or less, or otherwise. Credit
and its reversals, and the opening of the book, go out again as they were: what the ledger has of them changes nothing,
what it lacks is booked now. What a plan means, cycle, limits and entitlement, goes out as it is now, at a revision that
is higher than any told before, so that it takes the place of whatever is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import grpc
from sqlalchemy import Engine

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.subscriptions import store
from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.deliverer import Deliverer
from services.subscriptions.errors import PlanNotFound
from services.subscriptions.model.account import Account, fresh_revision
from services.subscriptions.model.delivery import Delivery, MoveCycle, plan_terms
from services.subscriptions.model.plan import Plan

_log = get_logger(__name__)

# What takes effect once, however late it is told again.
_TOLD_AS_IT_WAS = ("open_ledger_account", "grant_credit", "reverse_grant")
# What a plan means. What still waits of it is not told: the ledger may know its revision from a move that is lost.
_TERMS = ("move_cycle", "set_plan_limits", "set_entitlement")
_ACCOUNTS_AT_ONCE = 200
# After so long without anything arriving, ledger or proxy are away: what waits is left to the worker.
PATIENCE_SECONDS = 60.0
_CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Redelivered:
    """Accounts told of again, those whose plan is not there, and deliveries that ledger or proxy have not taken yet.

    `gave_up`: for so long as it was waited nothing arrived, though there was more to be delivered.
    """

    accounts: int
    without_plan: int
    waiting: int
    gave_up: bool = False


class Redelivery:
    """Tells again."""

    def __init__(
        self,
        engine: Engine,
        plans: PlanCatalogue,
        deliverer: Deliverer,
        *,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._plans = plans
        self._deliverer = deliverer
        self._clock = clock
        self._monotonic = monotonic

    def run(self) -> Redelivered:
        """Put all of it into the outbox, an account at a time, then deliver what is due; it may be done again at will.

        Ends when nothing is due any more, or nothing has arrived for `PATIENCE_SECONDS`: the worker goes on with it.
        Raises RemoteError where pricing does not answer: what was put in so far is delivered by the worker.
        """
        accounts = without_plan = 0
        after = ""
        while True:
            with self._engine.connect() as connection:
                page = store.list_accounts(connection, plan_id="", status="", after=after, limit=_ACCOUNTS_AT_ONCE)
            for account in page:
                accounts += 1
                without_plan += not self._told_again(account)
            if len(page) < _ACCOUNTS_AT_ONCE:
                break
            after = page[-1].account_id
        gave_up = not self._delivered()
        with self._engine.connect() as connection:
            waiting, _ = store.waiting_summary(connection)
        return Redelivered(accounts, without_plan, waiting, gave_up=gave_up and waiting > 0)

    def _delivered(self) -> bool:
        """Deliver what is due; False where nothing arrives any more, though all that waits is due again and again."""
        arrived_at = self._monotonic()
        while (has_arrived := self._deliverer.attempt_next()) is not None:
            now = self._monotonic()
            if has_arrived:
                arrived_at = now
            elif now - arrived_at >= PATIENCE_SECONDS:
                return False
        return True

    def _told_again(self, seen: Account) -> bool:
        """Put one account's into the outbox; False where its plan is not there, so that only its credit is told of."""
        try:
            plan = self._plans.version(seen.plan_id, seen.plan_version)
        except PlanNotFound:
            plan = None
            _log.error("no such plan", account_id=seen.account_id, plan=seen.plan_id, version=seen.plan_version)
        except grpc.RpcError as error:
            raise RemoteError.from_rpc(error) from error
        with self._engine.begin() as connection:
            account = store.lock_account(connection, seen.account_id)
            assert account is not None
            store.tell_again(connection, account.account_id, _TOLD_AS_IT_WAS)
            if plan is None or account.revision != seen.revision:
                return plan is not None  # moved meanwhile: that has told of its new terms
            renewed = replace(account, revision=max(account.revision + 1, fresh_revision(self._clock())))
            store.update_account(connection, renewed)
            store.withdraw(connection, account.account_id, _TERMS)
            store.enqueue(connection, account.account_id, _terms(renewed, plan))
        return True


def _terms(account: Account, plan: Plan) -> list[Delivery]:
    limits, entitlement = plan_terms(account, plan)
    if account.status == _CLOSED:  # its book takes no changes
        return [entitlement]
    return [MoveCycle(account.account_id, account.revision, account.cycle_anchor), limits, entitlement]
