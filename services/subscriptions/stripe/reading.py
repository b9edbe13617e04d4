"""Owns the reading of Stripe's objects as they are now, in our terms. Nothing is written there, nothing kept here.

Methods raise MissingObjectError where Stripe has no such object, UnreadableObjectError where it is not one of those
that we make, and what `stripe_errors` says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TypeVar

import stripe

from services.subscriptions.errors import StripeKeyInvalid
from services.subscriptions.stripe.client import StripeAccess, is_missing, refusal
from services.subscriptions.stripe.ends import ends_with_period
from services.subscriptions.stripe.events import APPLIED_TYPES, CHARGE, INVOICE, PAYMENT_INTENT, Reference
from services.subscriptions.stripe.model import (
    FAILING,
    InvoiceLine,
    PaidInvoice,
    PaidTopUp,
    PlanKey,
    ReturnedCharge,
    SubscriptionState,
)
from services.subscriptions.stripe.names import (
    CURRENCY,
    NANOS_PER_CENT,
    PURPOSE_RECHARGE,
    PURPOSE_TOP_UP,
    PriceName,
    plan_of_product,
    read_price_key,
)
from services.subscriptions.stripe.objects import (
    id_of,
    inclusive_tax,
    is_metered,
    kept_plan,
    moment,
    own_item,
    plan_of,
    price_name,
)
from services.subscriptions.stripe.renewal_rules import READ_WITH_IT, uncollected_renewal

_PAGE_SIZE = 100
_MAX_SUBSCRIPTIONS = 100
_MAX_LINES = 1000
_MAX_PRICES = 10_000
_MAX_EVENTS = 100_000
# So many types Stripe lists at once.
_MAX_TYPES = 20
# Disputes in which the money is with the bank; the others are inquiries, or are won.
_WITHDRAWN = frozenset({"needs_response", "under_review", "lost"})
# The newest subscription of the first of these that there is, is the account's.
_PRECEDENCE = (("active", "trialing"), (FAILING,), ("unpaid", "paused"))

_T = TypeVar("_T")


class MissingObjectError(Exception):
    """Stripe has no such object (any more)."""


class UnreadableObjectError(Exception):
    """The object is not as we make them: says what of it cannot be read."""


class StripeReader:
    """Reads. What a price is called, and whether it is for use, is remembered: a price never changes."""

    def __init__(self, access: StripeAccess) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._prices: dict[str, tuple[PriceName | None, bool]] = {}

    @property
    def configured(self) -> bool:
        """Whether there is a Stripe to read from."""
        return self._access.configured

    def require(self) -> None:
        """Raise StripeNotConfigured where there is none."""
        _ = self._access.client

    def account_named_by(self, customer_id: str) -> str:
        """The account that a customer's metadata names; empty where it is deleted, or is nobody's here."""
        customer = self._asked("read a customer", lambda client: client.v1.customers.retrieve(customer_id))
        if getattr(customer, "deleted", False) or customer.metadata is None:
            return ""
        return str(customer.metadata["account_id"]) if "account_id" in customer.metadata else ""

    def customer_of_charge(self, charge_id: str) -> str:
        """Whose charge it is; empty where nobody's."""
        charge = self._asked("read a charge", lambda client: client.v1.charges.retrieve(charge_id))
        return id_of(charge.customer)

    def subscription(self, customer_id: str) -> SubscriptionState | None:
        """The customer's subscription: of those that are in force, else that Stripe still has, else all, the newest.

        What the customer subscribes to beside our plans is left out. None where there is none, be it that the customer
        was deleted. Raises UnreadableObjectError where Stripe never had the customer: then nothing is known.
        """
        try:
            listed = self._subscriptions_of(customer_id)
        except MissingObjectError:
            listed = []
        if not listed:
            self._require_known(customer_id)
        named = [(found, name) for found in listed if (name := plan_of(found)) is not None]
        newest_first = sorted(named, key=lambda one: (one[0].created, one[0].id), reverse=True)
        for statuses in _PRECEDENCE:
            for found, name in newest_first:
                if found.status in statuses:
                    return self._state(found, name)
        return self._state(*newest_first[0]) if newest_first else None

    def _subscriptions_of(self, customer_id: str) -> list[stripe.Subscription]:
        params: stripe.params.SubscriptionListParams = {
            "customer": customer_id,
            "status": "all",
            "limit": _MAX_SUBSCRIPTIONS,
            "expand": ["data.latest_invoice"],
        }
        return self._asked("read subscriptions", lambda client: client.v1.subscriptions.list(params)).data

    def _require_known(self, customer_id: str) -> None:
        """Check that Stripe has, or had, a customer; with a key of another account's or mode it knows none of ours."""
        try:
            self._asked("read a customer", lambda client: client.v1.customers.retrieve(customer_id))
        except MissingObjectError as error:
            raise UnreadableObjectError(
                f"Stripe never had customer {customer_id}: is the key another account's, or of the other mode?"
            ) from error

    def _state(self, found: stripe.Subscription, name: PriceName) -> SubscriptionState:
        own = own_item(found)
        assert own is not None
        newest = found.latest_invoice if isinstance(found.latest_invoice, stripe.Invoice) else None
        return SubscriptionState(
            subscription_id=found.id,
            status=found.status,
            plan=PlanKey(name.plan_id, name.plan_version),
            interval=name.part,
            price_nanos=(own.price.unit_amount or 0) * (own.quantity or 1) * NANOS_PER_CENT,
            period_start=moment(own.current_period_start),
            period_end=moment(own.current_period_end),
            billing_anchor=moment(found.billing_cycle_anchor),
            cancel_at_period_end=ends_with_period(found, own.current_period_end),
            trial_end=moment(found.trial_end) if found.trial_end is not None else None,
            failing_since=self._failing_since(found.id) if found.status == FAILING else None,
            kept=kept_plan(found.metadata.to_dict()),
            paid_invoice_id=newest.id if newest is not None and newest.status == "paid" else "",
            renewal_id=uncollected_renewal(
                found, newest, [item for item in found.items.data if is_metered(item.price)]
            ),
        )

    def _failing_since(self, subscription_id: str) -> datetime | None:
        """When the oldest invoice was made final that was to be collected and has not been paid."""
        listed = self._asked(
            "read open invoices",
            lambda client: client.v1.invoices.list(
                params={"subscription": subscription_id, "status": "open", "limit": _PAGE_SIZE}
            ),
        )
        made_final = [found.status_transitions.finalized_at for found in listed.data if found.attempted]
        return min((moment(at) for at in made_final if at is not None), default=None)

    def renewal(self, invoice_id: str) -> stripe.Invoice:
        """An invoice as Stripe gives it, with its subscription as it is at the same moment."""
        params: stripe.params.InvoiceRetrieveParams = {"expand": [READ_WITH_IT]}
        return self._asked("read a renewal", lambda client: client.v1.invoices.retrieve(invoice_id, params))

    def bills_use(self, invoice: stripe.Invoice) -> bool:
        """Whether an invoice has lines for what was used."""
        return any(self._price(price_id)[1] for _, price_id in self._priced_lines(invoice))

    def paid_invoice(self, invoice_id: str) -> PaidInvoice | None:
        """An invoice, where it is paid."""
        invoice = self._asked("read an invoice", lambda client: client.v1.invoices.retrieve(invoice_id))
        if invoice.status != "paid":
            return None
        _require_currency("invoice", invoice_id, invoice.currency)
        paid_at = invoice.status_transitions.paid_at or invoice.created
        return PaidInvoice(
            invoice_id=invoice_id,
            amount_nanos=invoice.total * NANOS_PER_CENT,
            paid_at=moment(paid_at),
            lines=tuple(self._lines(invoice)),
            is_credited=bool(invoice.pre_payment_credit_notes_amount or invoice.post_payment_credit_notes_amount),
        )

    def credited(self, invoice_id: str) -> ReturnedCharge:
        """What of an invoice was given up or given back by credit notes, but for refunds: charges tell of those.

        A key that may read the invoice and not its notes holds up nothing else.
        """
        params: stripe.params.CreditNoteListParams = {"invoice": invoice_id, "limit": _PAGE_SIZE}
        try:
            listed = self._asked("list credit notes", lambda client: client.v1.credit_notes.list(params))
        except StripeKeyInvalid as error:
            raise UnreadableObjectError(f"Stripe's key may not read the credit notes of {invoice_id}") from error
        issued = [note for note in listed.data if note.status == "issued"]
        cents = sum(note.pre_payment_amount + note.post_payment_amount for note in issued)
        refunded = sum(refund.amount_refunded for note in issued for refund in note.refunds)
        return ReturnedCharge(f"credit_notes:{invoice_id}", cents - refunded)

    def paid_invoices(self, customer_id: str) -> list[str]:
        """A customer's paid invoices, the newest hundred."""
        listed = self._asked(
            "list invoices",
            lambda client: client.v1.invoices.list(
                params={"customer": customer_id, "status": "paid", "limit": _PAGE_SIZE}
            ),
        )
        return [found.id for found in listed.data]

    def _priced_lines(self, invoice: stripe.Invoice) -> Iterator[tuple[stripe.InvoiceLineItem, str]]:
        """An invoice's lines that are for a price, with its id."""
        for line in self._all_lines(invoice.id) if invoice.lines.has_more else invoice.lines.data:
            if line.pricing is not None and line.pricing.price_details is not None:
                yield line, id_of(line.pricing.price_details.price)

    def _lines(self, invoice: stripe.Invoice) -> Iterator[InvoiceLine]:
        for line, price_id in self._priced_lines(invoice):
            name, _ = self._price(price_id)
            if name is not None and name.is_base:
                yield InvoiceLine(
                    plan=PlanKey(name.plan_id, name.plan_version),
                    interval=name.part,
                    amount_nanos=(line.amount - inclusive_tax(line)) * NANOS_PER_CENT,
                    period_start=moment(line.period.start),
                    period_end=moment(line.period.end),
                )

    def _all_lines(self, invoice_id: str) -> list[stripe.InvoiceLineItem]:
        def pages(client: stripe.StripeClient) -> list[stripe.InvoiceLineItem]:
            listed = client.v1.invoices.line_items.list(invoice_id, params={"limit": _PAGE_SIZE})
            return _bounded(listed.auto_paging_iter(), _MAX_LINES, f"invoice {invoice_id} has too many lines")

        return self._asked("read an invoice's lines", pages)

    def _price(self, price_id: str) -> tuple[PriceName | None, bool]:
        """What a price is called (None: not one of ours), and whether it is for use."""
        found = self._prices.get(price_id)
        if found is None:
            price = self._asked("read a price", lambda client: client.v1.prices.retrieve(price_id))
            found = price_name(price) or self._name_by_product(price), is_metered(price)
            with self._lock:
                if len(self._prices) >= _MAX_PRICES:
                    self._prices.clear()
                self._prices[price_id] = found
        return found

    def _name_by_product(self, price: stripe.Price) -> PriceName | None:
        """What a price is for that somebody else made of one of our products: its plan's newest version there.

        Who is given another price at Stripe's dashboard pays by one that bears none of our names.
        """
        product_id = id_of(price.product)
        if price.recurring is None or is_metered(price) or not plan_of_product(product_id):
            return None
        params: stripe.params.PriceListParams = {"product": product_id, "type": "recurring", "limit": _PAGE_SIZE}
        listed = self._asked("list a product's prices", lambda client: client.v1.prices.list(params))
        names = [name for beside in listed.data if (name := read_price_key(beside.lookup_key)) is not None]
        newest = max((name for name in names if name.is_base), key=lambda name: name.plan_version, default=None)
        return replace(newest, part=price.recurring.interval) if newest is not None else None

    def paid_top_up(self, payment_intent_id: str) -> PaidTopUp | None:
        """A payment, where it is for credit and has succeeded."""
        intent = self._asked("read a payment", lambda client: client.v1.payment_intents.retrieve(payment_intent_id))
        purpose = str(intent.metadata["purpose"]) if "purpose" in intent.metadata else ""
        if purpose not in (PURPOSE_TOP_UP, PURPOSE_RECHARGE) or intent.status != "succeeded":
            return None
        _require_currency("payment", payment_intent_id, intent.currency)
        return PaidTopUp(
            payment_intent_id=payment_intent_id,
            purpose=purpose,
            amount_nanos=intent.amount_received * NANOS_PER_CENT,
            paid_at=moment(intent.created),
        )

    def payment_of_session(self, session_id: str) -> str:
        """The payment that a checkout led to; empty where it is not paid, or is for a subscription."""
        session = self._asked("read a checkout", lambda client: client.v1.checkout.sessions.retrieve(session_id))
        is_paid = session.mode == "payment" and session.payment_status == "paid"
        return id_of(session.payment_intent) if is_paid else ""

    def returned(self, charge_id: str) -> tuple[ReturnedCharge, str]:
        """What of a charge has been refunded, or is disputed and not won, and the payment that it is of."""
        charge = self._asked("read a charge", lambda client: client.v1.charges.retrieve(charge_id))
        cents = charge.amount_refunded
        if charge.disputed:
            listed = self._asked(
                "read disputes",
                lambda client: client.v1.disputes.list(params={"charge": charge_id, "limit": _PAGE_SIZE}),
            )
            cents += sum(dispute.amount for dispute in listed.data if dispute.status in _WITHDRAWN)
        return ReturnedCharge(charge_id, min(cents, charge.amount)), id_of(charge.payment_intent)

    def invoice_of_payment(self, payment_intent_id: str) -> str:
        """The invoice that a payment paid; empty where it paid none."""
        listed = self._asked(
            "read an invoice's payment",
            lambda client: client.v1.invoice_payments.list(
                params={"payment": {"type": "payment_intent", "payment_intent": payment_intent_id}, "limit": 1}
            ),
        )
        return id_of(listed.data[0].invoice) if listed.data else ""

    def recent(self, customer_id: str, since: datetime) -> list[Reference]:
        """A customer's paid invoices and successful payments since then, and charges with something returned.

        Of each kind the newest hundred.
        """
        created = int(since.timestamp())
        invoices = self._asked(
            "list invoices",
            lambda client: client.v1.invoices.list(
                params={
                    "customer": customer_id,
                    "status": "paid",
                    "created": {"gte": created},
                    "limit": _PAGE_SIZE,
                }
            ),
        )
        payments = self._asked(
            "list payments",
            lambda client: client.v1.payment_intents.list(
                params={"customer": customer_id, "created": {"gte": created}, "limit": _PAGE_SIZE}
            ),
        )
        charges = self._asked(
            "list charges",
            lambda client: client.v1.charges.list(
                params={"customer": customer_id, "created": {"gte": created}, "limit": _PAGE_SIZE}
            ),
        )
        return [
            *(Reference(INVOICE, found.id) for found in invoices.data),
            *(Reference(PAYMENT_INTENT, found.id) for found in payments.data if found.status == "succeeded"),
            *(Reference(CHARGE, found.id) for found in charges.data if found.amount_refunded or found.disputed),
        ]

    def events_between(self, since: datetime, until: datetime | None) -> Iterator[str]:
        """The bodies of the events that are acted upon, at most 100 000 of either half. Stripe keeps 30 days."""
        created: stripe.params.EventListParamsCreated = {"gte": int(since.timestamp())}
        if until is not None:
            created["lt"] = int(until.timestamp())
        types = sorted(APPLIED_TYPES)
        for start in range(0, len(types), _MAX_TYPES):
            yield from self._events_of(types[start : start + _MAX_TYPES], created)

    def _events_of(self, types: list[str], created: stripe.params.EventListParamsCreated) -> Iterator[str]:
        listed = self._asked(
            "list events",
            lambda client: client.v1.events.list(params={"created": created, "types": types, "limit": _PAGE_SIZE}),
        )
        given = 0
        while True:
            page = listed
            for event in page.data:
                yield json.dumps(event.to_dict(), default=str)
            given += len(page.data)
            if not page.has_more or given >= _MAX_EVENTS:
                return
            listed = self._asked("list events", partial(_next_page, page))

    def _asked(self, what: str, ask: Callable[[stripe.StripeClient], _T]) -> _T:
        client = self._access.client
        try:
            return ask(client)
        except stripe.StripeError as error:
            if is_missing(error):
                raise MissingObjectError(f"Stripe has no such object: {error.user_message}") from error
            raise refusal(error, what) from error


def _next_page(page: stripe.ListObject[stripe.Event], _: stripe.StripeClient) -> stripe.ListObject[stripe.Event]:
    return page.next_page()


def _require_currency(kind: str, object_id: str, currency: str) -> None:
    if currency != CURRENCY:
        raise UnreadableObjectError(f"{kind} {object_id} is in {currency}, not in {CURRENCY}")


def _bounded(items: Iterator[_T], most: int, complaint: str) -> list[_T]:
    found: list[_T] = []
    for item in items:
        if len(found) >= most:
            raise UnreadableObjectError(complaint)
        found.append(item)
    return found
