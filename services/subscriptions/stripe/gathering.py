"""Owns what is read, from Stripe and from pricing, before what an event is about can be applied to an account.

What is read does not depend on what the events say happened, only on which objects they are about; so it is the same in
whatever order they come, and however often.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.errors import PlanNotFound, StripeRefused
from services.subscriptions.model.account import DEFAULT_PLAN, Account
from services.subscriptions.model.plan import METERED, Plan
from services.subscriptions.stripe.events import CHARGE, CREDITED, INVOICE, PAYMENT_INTENT, SESSION, Reference
from services.subscriptions.stripe.grants import plans_named
from services.subscriptions.stripe.model import PaidInvoice, PaidSource, PlanKey, ReturnedCharge, SubscriptionState
from services.subscriptions.stripe.moves import is_kept
from services.subscriptions.stripe.reading import MissingObjectError, StripeReader, UnreadableObjectError

FREE_METERED_PLAN = "metered-free"

# What no repetition mends by itself.
LASTING_FAULTS = (MissingObjectError, UnreadableObjectError, StripeRefused, PlanNotFound)


@dataclass(slots=True)
class Seen:
    """What was read: the subscription (None: there never was one), what was paid, what of that was returned.

    `faults` says of objects that could not be read why, `left` are those for which there was no time.
    """

    subscription: SubscriptionState | None
    free: Plan
    plans: dict[PlanKey, Plan] = field(default_factory=dict)
    sources: dict[str, PaidSource] = field(default_factory=dict)
    returned: dict[str, list[ReturnedCharge]] = field(default_factory=dict)
    faults: dict[Reference, str] = field(default_factory=dict)
    left: set[Reference] = field(default_factory=set)


class Gathering:
    """Reads what is needed, in bounded time."""

    def __init__(self, reader: StripeReader, plans: PlanCatalogue, *, seconds: float) -> None:
        self._reader = reader
        self._plans = plans
        self._seconds = seconds

    def gather(
        self, account: Account, customer_id: str, references: Collection[Reference], known: Collection[str]
    ) -> Seen:
        """Read the customer's subscription and these objects; payments that are `known` give nothing new.

        Raises what `StripeReader` says, PlanNotFound, grpc.RpcError where the subscription or its plan cannot be read,
        or Stripe or pricing do not answer.
        """
        ends = time.monotonic() + self._seconds
        subscription = self._reader.subscription(customer_id) if customer_id else None
        plan = self._plans.version(account.plan_id, account.plan_version)
        seen = Seen(subscription, self._free(plan))
        self._learn(seen, PlanKey(plan.plan_id, plan.version))
        if subscription is not None:
            self._learn(seen, subscription.plan)
            seen.free = self._free(seen.plans[subscription.plan])
            if subscription.kept is not None:
                self._learn(seen, subscription.kept.plan)
                seen.subscription = _without_what_is_kept_no_more(subscription, seen.plans)
        wanted = list(references)
        if subscription is not None and subscription.paid_invoice_id:
            wanted.append(Reference(INVOICE, subscription.paid_invoice_id))
        for reference in dict.fromkeys(wanted):
            if reference.object_id in known and reference.kind not in (CHARGE, CREDITED):
                continue
            if time.monotonic() > ends:
                seen.left.add(reference)
                continue
            try:
                self._read(seen, reference)
                self._read_what_it_returns(seen, reference, customer_id, known)
            except LASTING_FAULTS as error:
                seen.faults[reference] = f"{type(error).__name__}: {error}"
        return seen

    def _read_what_it_returns(self, seen: Seen, reference: Reference, customer_id: str, known: Collection[str]) -> None:
        """Of an invoice that gives back time that was paid for: what paid for it, should that not be known yet."""
        source = seen.sources.get(reference.object_id)
        since = source.gives_back_from if isinstance(source, PaidInvoice) else None
        if since is None or not customer_id:
            return
        for invoice_id in self._reader.paid_invoices(customer_id):
            if invoice_id in known or invoice_id in seen.sources:
                continue
            paid = self._reader.paid_invoice(invoice_id)
            if paid is not None and any(line.period_end > since for line in paid.lines):
                self._keep(seen, paid)

    def _free(self, plan: Plan) -> Plan:
        """The plan that is left to who pays for none: of a metered plan the free metered one, where there is one."""
        if plan.kind == METERED:
            try:
                return self._plans.newest(FREE_METERED_PLAN)
            except PlanNotFound:
                pass
        return self._plans.newest(DEFAULT_PLAN)

    def _learn(self, seen: Seen, key: PlanKey) -> None:
        if key not in seen.plans:
            seen.plans[key] = self._plans.version(key.plan_id, key.version)

    def _read(self, seen: Seen, reference: Reference) -> None:
        match reference.kind:
            case kind if kind == INVOICE:
                self._keep(seen, self._reader.paid_invoice(reference.object_id))
            case kind if kind == CREDITED:
                self._keep(seen, self._reader.paid_invoice(reference.object_id), asks_for_notes=True)
            case kind if kind == PAYMENT_INTENT:
                self._keep(seen, self._reader.paid_top_up(reference.object_id))
            case kind if kind == SESSION:
                payment_intent_id = self._reader.payment_of_session(reference.object_id)
                if payment_intent_id:
                    self._keep(seen, self._reader.paid_top_up(payment_intent_id))
            case _:
                self._read_charge(seen, reference.object_id)

    def _read_charge(self, seen: Seen, charge_id: str) -> None:
        """What of a charge was returned, and what it paid for: a refund may be told of before its payment."""
        charge, payment_intent_id = self._reader.returned(charge_id)
        if not payment_intent_id:
            return
        source: PaidSource | None = self._reader.paid_top_up(payment_intent_id)
        source_id = payment_intent_id
        if source is None:
            source_id = self._reader.invoice_of_payment(payment_intent_id)
            source = self._reader.paid_invoice(source_id) if source_id else None
        if source is not None:
            self._keep(seen, source)
            seen.returned.setdefault(source_id, []).append(charge)

    def _keep(self, seen: Seen, source: PaidSource | None, *, asks_for_notes: bool = False) -> None:
        if source is None:
            return
        if isinstance(source, PaidInvoice) and (source.is_credited or asks_for_notes):
            credited = self._reader.credited(source.invoice_id)
            seen.returned.setdefault(source.invoice_id, []).append(credited)
        for key in plans_named(source):
            self._learn(seen, key)
        seen.sources[_source_id(source)] = source


def _without_what_is_kept_no_more(subscription: SubscriptionState, plans: Mapping[PlanKey, Plan]) -> SubscriptionState:
    kept = subscription.kept
    assert kept is not None
    still = is_kept(plans[kept.plan], plans[subscription.plan], until=kept.until, period_end=subscription.period_end)
    return subscription if still else replace(subscription, kept=None)


def _source_id(source: PaidSource) -> str:
    return getattr(source, "invoice_id", "") or getattr(source, "payment_intent_id", "")
