"""Owns the job that lowers the ledger's hard limits by the use that the ledger did not see.

The ledger enforces a plan's tokens and requests per cycle, and counts what passes the proxy. What is emitted of the
same metrics beside it uses up the same quota, so a hard limit in the ledger is what the plan includes less what was
emitted in the cycle. It is pushed as the plan's limits are, by the outbox, when it has changed by a hundredth of what
is included or nothing is left; at the start of each cycle the whole limit is pushed again, and whenever something else
(a move between plans) has pushed limits since.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, Engine

from services.subscriptions import store as accounts_store
from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.clock import Clock
from services.subscriptions.metering import store
from services.subscriptions.metering.model import HARD, in_minutes
from services.subscriptions.model.account import Account
from services.subscriptions.model.delivery import SetPlanLimits
from services.subscriptions.model.plan import METRIC_OF_UNIT, Plan, PlanLimit, limits

_ACCOUNTS_AT_ONCE = 100
# Changes smaller than this share of what is included are not worth a push.
_STEPS = 100
# In other statuses the limits are not the plan's; whoever restores it pushes those.
_ON_ITS_PLAN = frozenset({"active", "grace"})


def lowered(plan: Plan, emitted: dict[str, int]) -> tuple[PlanLimit, ...]:
    """The plan's limits, hard ones less what was emitted of their metrics."""
    return tuple(
        replace(limit, amount=max(0, limit.amount - emitted.get(METRIC_OF_UNIT[limit.unit], 0)))
        if limit.mode == HARD
        else limit
        for limit in limits(plan)
    )


def is_worth_a_push(plan: Plan, pushed: dict[str, int], wanted: tuple[PlanLimit, ...]) -> bool:
    """Whether limits differ enough from those pushed: by a hundredth of what is included, or to or from none left."""
    included = {limit.unit: limit.amount for limit in limits(plan)}
    for limit in wanted:
        before = pushed.get(limit.unit, included[limit.unit])
        step = max(1, included[limit.unit] // _STEPS)
        if abs(before - limit.amount) >= step or (before == 0) != (limit.amount == 0):
            return True
    return False


class LimitGuard:
    """Keeps the ledger's hard limits at what emitted use leaves of them."""

    def __init__(self, engine: Engine, plans: PlanCatalogue, *, clock: Clock) -> None:
        self._engine = engine
        self._plans = plans
        self._clock = clock

    def __call__(self) -> bool:
        """Look at the accounts that are due; whether there may be more. Raises grpc.RpcError: pricing is asked."""
        with self._engine.connect() as connection:
            due = store.limits_due(connection, limit=_ACCOUNTS_AT_ONCE)
        for account_id in due:
            with self._engine.connect() as connection:
                seen = accounts_store.find_account(connection, account_id)
            assert seen is not None
            plan = self._plans.version(seen.plan_id, seen.plan_version)
            with self._engine.begin() as connection:
                account = accounts_store.lock_account(connection, account_id)
                if account is not None and account.revision == seen.revision:
                    self._look(connection, account, plan)
        return len(due) == _ACCOUNTS_AT_ONCE

    def _look(self, connection: Connection, account: Account, plan: Plan) -> None:
        """Push what has changed of an account whose row is locked."""
        # Locked before use is read: an aggregator that adds to it later lets the account be looked at again.
        known = store.lock_pushed_limits(connection, account.account_id)
        cycle = account.cycle_at(self._clock())
        emitted = store.cycle_emitted(connection, account.account_id, in_minutes(cycle))
        wanted = lowered(plan, emitted)
        # Whoever else has pushed since has pushed the whole limits.
        pushed = known.amounts if known.revision == account.revision else {}
        if account.status in _ON_ITS_PLAN and is_worth_a_push(plan, pushed, wanted):
            account = replace(account, revision=account.revision + 1)
            accounts_store.update_account(connection, account)
            push = SetPlanLimits(account.account_id, account.revision, wanted, ())
            accounts_store.enqueue(connection, account.account_id, [push])
            pushed = {limit.unit: limit.amount for limit in wanted}
        store.keep_pushed_limits(
            connection, account.account_id, store.PushedLimits(account.revision, pushed), look_at=cycle.end
        )
