"""A renewal that is collected before Stripe does it: made final and paid through the API within the draft's hour."""

from __future__ import annotations

from typing import Any

import pytest
import stripe
from sandbox_stripe_process import DAY, NEW_YEAR, Shop

END = NEW_YEAR + 31 * DAY
HOUR = 3600


@pytest.fixture
def renewed(shop: Shop) -> Any:
    """A subscription half a minute into its second period: `clock`, `customer`, `id`, and the `draft`."""
    clock = shop.clock()
    customer = shop.customer(clock)
    made = shop.subscribe(customer, shop.price(1900))
    shop.advance(clock, END + 30)
    found = shop.v1.subscriptions.retrieve(made.id, {"expand": ["latest_invoice"]})
    return _Renewed(shop, clock, customer.id, found.id, found.latest_invoice)


class _Renewed:
    def __init__(self, shop: Shop, clock: Any, customer: str, subscription: str, draft: Any) -> None:
        self.shop, self.clock, self.customer, self.id, self.draft = shop, clock, customer, subscription, draft

    def invoice(self) -> Any:
        return self.shop.v1.invoices.retrieve(self.draft.id)

    def fails(self) -> None:
        self.shop.give_card(self.customer, "pm_card_chargeCustomerFail")

    def told(self) -> list[str]:
        """The events of the invoice, oldest first."""
        return [event.type for event in self.shop.events() if event.data.object.id == self.draft.id]


def test_a_draft_says_when_it_will_be_made_final(renewed: Any) -> None:
    assert (renewed.draft.auto_advance, renewed.draft.automatically_finalizes_at) == (True, END + HOUR)
    assert (renewed.draft.attempted, renewed.draft.attempt_count) == (False, 0)


def test_made_final_and_paid_within_the_hour_it_is_not_collected_again(shop: Shop, renewed: Any) -> None:
    final = shop.v1.invoices.finalize_invoice(renewed.draft.id, {"auto_advance": True})
    assert (final.status, final.attempted, final.automatically_finalizes_at) == ("open", False, None)
    assert final.status_transitions.finalized_at == END + 30
    paid = shop.v1.invoices.pay(renewed.draft.id)
    assert (paid.status, paid.amount_paid, paid.attempt_count, paid.auto_advance) == ("paid", 1900, 1, False)
    shop.advance(renewed.clock, END + 2 * HOUR)
    assert renewed.told() == ["invoice.created", "invoice.finalized", "invoice.paid", "invoice.payment_succeeded"]
    assert len([c for c in shop.v1.charges.list({"customer": renewed.customer}).data if c.paid]) == 2


def test_made_final_and_advancing_it_is_charged_by_itself(shop: Shop, renewed: Any) -> None:
    shop.v1.invoices.finalize_invoice(renewed.draft.id, {"auto_advance": True})
    shop.advance(renewed.clock, END + 60)
    assert (renewed.invoice().status, renewed.invoice().amount_paid) == ("paid", 1900)


def test_made_final_and_not_advancing_it_stays_open(shop: Shop, renewed: Any) -> None:
    shop.v1.invoices.finalize_invoice(renewed.draft.id, {"auto_advance": False})
    shop.advance(renewed.clock, END + DAY)
    assert (renewed.invoice().status, renewed.invoice().attempted) == ("open", False)


def test_what_is_final_is_not_made_final_again_nor_what_is_paid_paid(shop: Shop, renewed: Any) -> None:
    shop.v1.invoices.finalize_invoice(renewed.draft.id)
    with pytest.raises(stripe.InvalidRequestError, match="already finalized"):
        shop.v1.invoices.finalize_invoice(renewed.draft.id)
    shop.v1.invoices.pay(renewed.draft.id)
    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        shop.v1.invoices.pay(renewed.draft.id)


def test_a_first_attempt_by_hand_that_is_declined_is_followed_as_planned(shop: Shop, renewed: Any) -> None:
    renewed.fails()
    shop.v1.invoices.finalize_invoice(renewed.draft.id, {"auto_advance": True})
    with pytest.raises(stripe.CardError):
        shop.v1.invoices.pay(renewed.draft.id)
    owed = renewed.invoice()
    assert (owed.status, owed.attempt_count, owed.next_payment_attempt) == ("open", 1, END + 30 + 3 * DAY)
    assert shop.v1.subscriptions.retrieve(renewed.id).status == "past_due"
    assert renewed.told() == ["invoice.created", "invoice.finalized", "invoice.payment_failed"]
    shop.advance(renewed.clock, END + 30 + 3 * DAY)
    assert renewed.invoice().attempt_count == 2


def test_later_attempts_by_hand_change_nothing_of_the_plan(shop: Shop, renewed: Any) -> None:
    renewed.fails()
    shop.advance(renewed.clock, END + HOUR)
    planned = renewed.invoice().next_payment_attempt
    shop.advance(renewed.clock, END + DAY)
    for _ in range(4):
        with pytest.raises(stripe.CardError):
            shop.v1.invoices.pay(renewed.draft.id)
    assert (renewed.invoice().attempt_count, renewed.invoice().next_payment_attempt) == (1, planned)
    shop.advance(renewed.clock, planned)
    assert renewed.invoice().attempt_count == 2
    assert shop.v1.subscriptions.retrieve(renewed.id).status == "past_due"


def test_what_is_used_up_to_then_and_told_of_later_is_on_no_invoice_that_is_final(shop: Shop) -> None:
    """Why a metered plan's renewal is not to be made final early."""
    clock, meter = shop.clock(), shop.meter()
    customer = shop.customer(clock)
    made = shop.subscribe(customer, shop.price(9900), shop.metered_price(meter, 1, "1"))
    shop.advance(clock, END + 30)
    draft = shop.v1.subscriptions.retrieve(made.id).latest_invoice
    assert shop.v1.invoices.finalize_invoice(draft).total == 9900
    shop.v1.billing.meter_events.create(
        {
            "event_name": meter.event_name,
            "payload": {"stripe_customer_id": customer.id, "value": "51"},
            "timestamp": END - 1,
        }
    )
    shop.advance(clock, END + 2 * HOUR)
    assert shop.v1.invoices.retrieve(draft).amount_paid == 9900
    preview = shop.v1.invoices.create_preview({"subscription": made.id})
    assert sum(line.quantity for line in preview.lines.data if line.amount != 9900) == 0, "nor on the next one"
