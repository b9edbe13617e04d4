"""Owns what is read from Stripe, in our terms, and what is kept of it. Frozen; amounts are nanos, times UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

# Stripe's statuses in which a subscription says which plan its account is on.
FAILING = "past_due"
IN_FORCE = frozenset({"active", "trialing", FAILING})


@dataclass(frozen=True, slots=True)
class PlanKey:
    """A version of a plan."""

    plan_id: str
    version: int


@dataclass(frozen=True, slots=True)
class KeptPlan:
    """The dearer plan that a customer keeps until the period it has paid for ends."""

    plan: PlanKey
    until: datetime


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """A subscription as Stripe has it now; `status` is Stripe's word.

    `failing_since` is when the oldest invoice that was to be collected and is not paid was made final; None where all
    are paid. `paid_invoice_id` is its newest invoice, where that is paid; `renewal_id` the same, where that is a
    renewal's which is still to be collected (`renewal_rules.py`).
    """

    subscription_id: str
    status: str
    plan: PlanKey
    interval: str
    price_nanos: int
    period_start: datetime
    period_end: datetime
    billing_anchor: datetime
    cancel_at_period_end: bool
    trial_end: datetime | None = None
    failing_since: datetime | None = None
    kept: KeptPlan | None = None
    paid_invoice_id: str = ""
    renewal_id: str = ""

    @property
    def in_force(self) -> bool:
        """Whether it says which plan its account is on."""
        return self.status in IN_FORCE


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """A line for a plan's own price: negative gives back. `amount_nanos` is without tax, before discounts."""

    plan: PlanKey
    interval: str
    amount_nanos: int
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True, slots=True)
class PaidInvoice:
    """An invoice that is paid. `amount_nanos` is its total, `lines` those for plans' own prices.

    `is_credited`: credit notes were issued of it.
    """

    invoice_id: str
    amount_nanos: int
    paid_at: datetime
    lines: tuple[InvoiceLine, ...]
    is_credited: bool = False

    @property
    def gives_back_from(self) -> datetime | None:
        """From when on it gives back time that was paid for; None where it gives back none."""
        return min((line.period_start for line in self.lines if line.amount_nanos < 0), default=None)


@dataclass(frozen=True, slots=True)
class PaidTopUp:
    """A payment for credit; `purpose` is `top_up` or `auto_recharge`."""

    payment_intent_id: str
    purpose: str
    amount_nanos: int
    paid_at: datetime


PaidSource = PaidInvoice | PaidTopUp


@dataclass(frozen=True, slots=True)
class ReturnedCharge:
    """A charge, and what of it is not ours any more: refunded, or disputed and not won. In cents.

    What credit notes of an invoice gave up or gave back otherwise stands in place of one more charge.
    """

    charge_id: str
    returned_cents: int


@dataclass(frozen=True, slots=True)
class Mirror:
    """What is kept of an account's newest subscription; see the table of that name."""

    account_id: str
    subscription_id: str
    status: str
    in_force: bool
    plan_id: str
    plan_version: int
    interval: str
    price_nanos: int
    period_start: datetime
    period_end: datetime
    cancel_at_period_end: bool
    trial_end: datetime | None
    failing_since: datetime | None
    grace_until: datetime | None
    pending_plan_id: str
    look_at: datetime | None


@dataclass(frozen=True, slots=True)
class Payment:
    """What was paid, the credit it is worth, and what of each of its charges has been returned, in cents."""

    source_id: str
    account_id: str
    kind: str
    amount_nanos: int
    credit_nanos: int
    paid_at: datetime
    returned: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CreditPart:
    """One grant of the ledger's that a payment gives; the parts of a payment are numbered from 1.

    `taken_elsewhere_nanos`: of what was taken back, what came from other credit, and was not given again.
    """

    account_id: str
    request_id: str
    source_id: str
    part: int
    source: str
    amount_nanos: int
    due_at: datetime
    expires_at: datetime | None
    rollover_cap_nanos: int
    taken_back_nanos: int = 0
    times_taken_back: int = 0
    granted_at: datetime | None = None
    taken_elsewhere_nanos: int = 0

    @property
    def left_nanos(self) -> int:
        """What has not been taken back of it."""
        return self.amount_nanos - self.taken_back_nanos
