"""Owns the use cases of plans and their transactions: find plans, make, change and retire them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine

from services.kit.logs import get_logger
from services.pricing import store
from services.pricing.errors import PlanExists, PlanNotFound
from services.pricing.live import LiveCatalogue, Snapshot
from services.pricing.model import Plan, PlanVersion, plan_faults
from services.pricing.writing import Asked, Turn, refuse, turn
from services.rating import Fault

_log = get_logger(__name__)

_PLAN_FIELD = "plan"


class PlanService:
    """The use cases, over one database and the live catalogue that this process reads from it."""

    def __init__(self, engine: Engine, live: LiveCatalogue) -> None:
        self._engine = engine
        self._live = live

    def plan(self, plan_id: str, version: int = 0) -> Plan:
        """A plan in its newest (0) or a named version. Raises PlanNotFound."""
        found = _plan(self._live.current(), plan_id, version) or _plan(self._live.refresh(), plan_id, version)
        if found is None:
            raise _not_found(plan_id, version)
        return found

    def plans(self, *, kind: str = "", include_retired: bool = False) -> list[Plan]:
        """Plans in their newest version, by kind and price."""
        return sorted(
            (
                plan
                for plan in self._live.current().newest_plans()
                if (not kind or plan.kind == kind) and (include_retired or not plan.retired)
            ),
            key=lambda plan: (plan.kind, plan.price_nanos, plan.plan_id),
        )

    def versions(self, plan_id: str, *, before: int | None, limit: int) -> list[PlanVersion]:
        """A plan's versions, newest first, those before version `before`. Raises PlanNotFound."""
        self.plan(plan_id)
        with self._engine.connect() as connection:
            return store.read_plan_history(connection, plan_id, before=before, limit=limit)

    def create(self, plan: Plan, asked: Asked) -> tuple[Plan, bool]:
        """Make a plan, in version 1; it, and whether this is a repeat.

        Raises InvalidArgument naming all that is wrong, PlanExists, IdempotencyConflict.
        """
        made = replace(plan, version=1, retired=False)
        refuse(_PLAN_FIELD, plan_faults(made))
        with turn(self._engine, asked) as ours:
            if ours.replayed is not None:
                return store.read_plan(ours.connection, plan.plan_id, ours.replayed), True
            if store.read_newest_plan(ours.connection, plan.plan_id) is not None:
                raise PlanExists(f"there is a plan {plan.plan_id} already", plan_id=plan.plan_id)
            made = _written(ours, made)
        return self._told(made, asked), False

    def update(self, plan: Plan, names: Collection[str], asked: Asked) -> tuple[Plan, bool]:
        """Make a plan's next version, with `plan`'s values of the fields named; it, and whether this is a repeat.

        Where nothing would change, nothing is written and the newest version is the answer.
        Raises InvalidArgument naming all that is wrong, PlanNotFound, IdempotencyConflict.
        """
        return self._changed(plan.plan_id, {name: getattr(plan, name) for name in names}, asked)

    def retire(self, plan_id: str, asked: Asked) -> tuple[Plan, bool]:
        """Take a plan off sale, by a version of its own; it, and whether this is a repeat. Accounts on it keep theirs.

        Raises PlanNotFound, IdempotencyConflict.
        """
        return self._changed(plan_id, {"retired": True}, asked)

    def _changed(self, plan_id: str, values: dict[str, Any], asked: Asked) -> tuple[Plan, bool]:
        with turn(self._engine, asked) as ours:
            if ours.replayed is not None:
                return store.read_plan(ours.connection, plan_id, ours.replayed), True
            newest = store.read_newest_plan(ours.connection, plan_id)
            if newest is None:
                raise _not_found(plan_id)
            made = replace(newest, **values)
            if made == newest:
                ours.done(newest.version, changed=False)
                return newest, False
            if made.kind != newest.kind:
                # Its subscribers' grants, quotas and invoices are of one kind.
                refuse(_PLAN_FIELD, [Fault("kind", f"must stay {newest.kind}: make another plan instead")])
            refuse(_PLAN_FIELD, plan_faults(made))
            made = _written(ours, replace(made, version=newest.version + 1))
        return self._told(made, asked), False

    def _told(self, plan: Plan, asked: Asked) -> Plan:
        _log.info("plan written", plan=plan.plan_id, version=plan.version, retired=plan.retired, author=asked.author)
        self._live.refresh()
        return plan


def _written(ours: Turn, plan: Plan) -> Plan:
    made = replace(plan, created_at=ours.now)
    store.insert_plans(
        ours.connection,
        [made],
        created_at=ours.now,
        author=ours.asked.author,
        reason=ours.asked.reason,
        revision=ours.revision,
    )
    ours.done(made.version)
    return made


def _plan(snapshot: Snapshot, plan_id: str, version: int) -> Plan | None:
    versions: Sequence[Plan] = snapshot.plans.get(plan_id, ())
    if not version:
        return versions[-1] if versions else None
    return next((plan for plan in versions if plan.version == version), None)


def _not_found(plan_id: str, version: int = 0) -> PlanNotFound:
    return PlanNotFound(f"there is no plan {plan_id}" + (f" in version {version}" if version else ""), plan_id=plan_id)
