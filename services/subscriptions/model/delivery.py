"""Owns what has to reach ledger and proxy: the deliveries of an account, in the order they are to be made.

A delivery is idempotent where it arrives: opening by the account's id, limits and grants by a request id made from the
account's own state, an entitlement by its revision. So each may be sent any number of times and takes effect once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from services.subscriptions.model.account import Account
from services.subscriptions.model.cycle import Cycle
from services.subscriptions.model.plan import LIMITED_UNITS, Plan, PlanLimit, limits

# The source of credit that a plan gives free.
PROMOTION = "promotion"

_FIRST_DELAY_SECONDS = 0.5
_MAX_DELAY_SECONDS = 60.0
_MAX_DOUBLINGS = 10
# A refusal does not go away by itself: somebody has to look. It is still retried, so that nothing has to be replayed.
_REFUSED_DELAY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class OpenLedgerAccount:
    """The account's book in the ledger, its cycles counted from `cycle_anchor`."""

    account_id: str
    display_name: str
    cycle_anchor: datetime
    kind: Literal["open_ledger_account"] = "open_ledger_account"


@dataclass(frozen=True, slots=True)
class MoveCycle:
    """The ledger's cycles, counted from another moment: the present one ends, and its limits begin anew."""

    account_id: str
    revision: int
    cycle_anchor: datetime
    kind: Literal["move_cycle"] = "move_cycle"


@dataclass(frozen=True, slots=True)
class SetPlanLimits:
    """The plan's limits: those in `limits` are set, the plan limits named in `ended_units` are ended."""

    account_id: str
    revision: int
    limits: tuple[PlanLimit, ...]
    ended_units: tuple[str, ...]
    kind: Literal["set_plan_limits"] = "set_plan_limits"


@dataclass(frozen=True, slots=True)
class GrantCredit:
    """Credit, once per `request_id`. What was bought does not expire (None)."""

    account_id: str
    request_id: str
    amount_nanos: int
    source: str
    description: str
    expires_at: datetime | None
    rollover_cap_nanos: int
    kind: Literal["grant_credit"] = "grant_credit"

    def has_lapsed(self, moment: datetime) -> bool:
        """Whether it would have expired by now: such a grant gives nothing, and the ledger refuses it."""
        return self.expires_at is not None and self.expires_at <= moment


@dataclass(frozen=True, slots=True)
class ReverseGrant:
    """Credit taken back, once per `request_id`: so much of what `grant_request_id` gave."""

    account_id: str
    request_id: str
    grant_request_id: str
    amount_nanos: int
    description: str
    kind: Literal["reverse_grant"] = "reverse_grant"


@dataclass(frozen=True, slots=True)
class SetEntitlement:
    """What the proxy lets the account call. A higher revision takes the place of a lower one."""

    account_id: str
    plan_id: str
    revision: int
    active: bool
    providers: tuple[str, ...]
    models: tuple[str, ...]
    max_tokens_per_request: int
    requests_per_minute: int
    tokens_per_minute: int
    multiplier_millionths: int
    metered: bool = False
    kind: Literal["set_entitlement"] = "set_entitlement"


Delivery = OpenLedgerAccount | MoveCycle | SetPlanLimits | GrantCredit | ReverseGrant | SetEntitlement

_ADAPTER: TypeAdapter[Delivery] = TypeAdapter(Annotated[Delivery, Field(discriminator="kind")])


def to_payload(delivery: Delivery) -> dict[str, Any]:
    """A delivery as JSON values, for the outbox."""
    payload: dict[str, Any] = _ADAPTER.dump_python(delivery, mode="json")
    return payload


def from_payload(payload: dict[str, Any]) -> Delivery:
    """A delivery read back. Fields that a newer release added are ignored."""
    return _ADAPTER.validate_python(payload)


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A delivery in the outbox; `attempts` counts this one too."""

    account_id: str
    sequence: int
    attempts: int
    delivery: Delivery


def opening(account: Account) -> OpenLedgerAccount:
    """What opens a new account's book."""
    return OpenLedgerAccount(account.account_id, account.display_name, account.cycle_anchor)


def plan_terms(account: Account, plan: Plan) -> tuple[SetPlanLimits, SetEntitlement]:
    """What ledger and proxy have to know of a plan, at the account's revision.

    Limits that the plan lacks are ended of a new account too: its book may be there from before a restore.
    """
    set_limits = limits(plan)
    limited = {limit.unit for limit in set_limits}
    ended = tuple(unit for unit in LIMITED_UNITS if unit not in limited)
    return (
        SetPlanLimits(account.account_id, account.revision, set_limits, ended),
        SetEntitlement(
            account_id=account.account_id,
            plan_id=plan.plan_id,
            revision=account.revision,
            # The calls of a suspended account the ledger refuses by itself, and of a resumed one no longer, at once.
            active=account.status != "closed",
            providers=plan.providers,
            models=plan.models,
            max_tokens_per_request=plan.max_tokens_per_request,
            requests_per_minute=plan.requests_per_minute,
            tokens_per_minute=plan.tokens_per_minute,
            multiplier_millionths=plan.multiplier_millionths,
            metered=plan.kind == "metered",
        ),
    )


def with_promotion(account: Account, plan: Plan, now: datetime) -> tuple[Account, list[GrantCredit]]:
    """The account on a plan that gives a promotion or not, and the grant of the present cycle where it is owed one."""
    if not plan.gives_promotion:
        return replace(account, renews_grant=False), []
    if not account.is_owed_grant(now):
        return replace(account, renews_grant=True), []
    cycle = account.cycle_at(now)
    granted = replace(account, renews_grant=True, granted_until=cycle.end)
    if account.granted_until is not None and cycle.start < account.granted_until:
        return granted, []  # its cycles were moved: this one began while an earlier promotion lasted
    return granted, [promotion(account.account_id, plan, cycle)]


def promotion(account_id: str, plan: Plan, cycle: Cycle) -> GrantCredit:
    """The credit a plan gives free in one cycle, expiring with it.

    The request id names the cycle only: keys are unique within an account, and moving from plan to plan within a cycle
    must not give a second promotion.
    """
    return GrantCredit(
        account_id=account_id,
        request_id=f"promo:{cycle.start.date().isoformat()}",
        amount_nanos=plan.promotional_grant_nanos,
        source=PROMOTION,
        description=f"Free credit of plan {plan.plan_id} for the cycle from {cycle.start.date().isoformat()}",
        expires_at=cycle.end,
        rollover_cap_nanos=plan.rollover_cap_nanos,
    )


def retry_delay_seconds(attempts: int, *, refused: bool) -> float:
    """How long to wait after so many failed attempts: half a second, doubling up to a minute; 5 min if refused."""
    if refused:
        return _REFUSED_DELAY_SECONDS
    return min(_MAX_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(max(attempts - 1, 0), _MAX_DOUBLINGS))
