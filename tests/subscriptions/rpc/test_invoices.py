"""Invoices as customers read them: their own, page by page, with lines and PDF; and the one to come."""

import grpc
import pytest
from subscriptions_peers import USD
from subscriptions_shop import CENT
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb

UPCOMING = pb.GetUpcomingInvoiceRequest()


def test_invoice_is_shown_with_its_lines_and_a_pdf(shop):
    acme = shop.customer()
    acme.subscribe("starter")
    (shown,) = acme.list_invoices().invoices
    (made,) = acme.invoices()
    assert (shown.invoice_id, shown.number, shown.status, shown.currency) == (made.id, made.number, "paid", "usd")
    assert (shown.total_nanos, shown.amount_due_nanos, shown.amount_paid_nanos) == (19 * USD,) * 3
    assert (shown.created_at.seconds, shown.period_start.seconds) == (made.created, made.period_start)
    (line,) = shown.lines
    assert (line.amount_nanos, line.quantity, line.proration) == (19 * USD, 1, False)
    assert "Starter" in line.description
    assert line.period_end.seconds == acme.subscription["items"].data[0].current_period_end
    assert shop.sandbox.get(shown.hosted_invoice_url)[0] == 200
    status, document = shop.sandbox.get(shown.invoice_pdf_url)
    assert (status, document[:5]) == (200, b"%PDF-")


def test_prorated_lines_are_marked_and_may_be_negative(shop):
    shop.start_clock()
    acme = shop.customer()
    acme.subscribe("starter")
    shop.later(days=10)
    acme.update(plan="professional")
    newest = acme.list_invoices(page_size=1).invoices[0]
    assert [(line.amount_nanos < 0, line.proration) for line in newest.lines] == [(True, True), (False, True)]
    assert sum(line.amount_nanos for line in newest.lines) == newest.total_nanos


def test_invoices_come_newest_first_page_by_page(shop):
    shop.start_clock()
    acme = shop.customer()
    acme.subscribe("starter")
    for _ in range(4):
        shop.later(days=31)
    made = [invoice.id for invoice in acme.invoices()]
    pages, token = [], ""
    while not pages or token:
        page = acme.list_invoices(page_size=2, page_token=token)
        pages.append([invoice.invoice_id for invoice in page.invoices])
        token = page.next_page_token
    assert [one for page in pages for one in page] == made
    assert len(made) == 5
    assert {len(page) for page in pages[:-1]} == {2}


def test_invoice_of_many_lines_is_shown_whole(shop):
    acme = shop.customer()
    acme.top_up()
    v1 = shop.sandbox.v1
    shop.sandbox.give_card(acme.customer_id, "pm_card_visa")
    invoice = v1.invoices.create({"customer": acme.customer_id, "pending_invoice_items_behavior": "exclude"})
    for cents in range(1, 26):
        v1.invoice_items.create({"customer": acme.customer_id, "invoice": invoice.id, "amount": cents * 100})
    v1.invoices.finalize_invoice(invoice.id)
    (shown,) = acme.list_invoices().invoices
    assert sorted(line.amount_nanos // CENT for line in shown.lines) == [cents * 100 for cents in range(1, 26)]


def test_account_that_never_paid_has_no_invoices_and_stripe_is_not_asked(shop):
    acme = shop.customer()
    shop.sandbox.outage(60)
    assert acme.list_invoices() == pb.ListInvoicesResponse()


def test_invoices_of_another_account_are_not_reached(shop):
    acme, other = shop.customer(), shop.customer("other")
    for customer in (acme, other):
        customer.subscribe("starter")
    error = other.refused(other.billing.ListInvoices, pb.ListInvoicesRequest(account_id=acme.account_id))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    request = pb.GetUpcomingInvoiceRequest(account_id=acme.account_id)
    assert other.refused(other.billing.GetUpcomingInvoice, request).code is grpc.StatusCode.PERMISSION_DENIED
    assert [one.invoice_id for one in other.list_invoices().invoices] == [other.invoices()[0].id]


def test_page_token_of_another_account_is_refused(shop):
    shop.start_clock()
    acme, other = shop.customer(), shop.customer("other")
    for customer in (acme, other):
        customer.subscribe("starter")
    shop.later(days=31)
    token = acme.list_invoices(page_size=1).next_page_token
    error = other.refused(other.billing.ListInvoices, pb.ListInvoicesRequest(page_size=1, page_token=token))
    assert [violation.field for violation in error.violations] == ["page_token"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"page_size": -1}, "page_size"), ({"page_token": "made-up"}, "page_token")],
)
def test_bad_page_is_named(shop, fields, field):
    acme = shop.customer()
    error = acme.refused(acme.billing.ListInvoices, pb.ListInvoicesRequest(**fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]


def test_upcoming_invoice_is_the_one_that_comes(shop):
    shop.start_clock()
    acme = shop.customer()
    acme.subscribe("starter")
    shown = acme.ask(acme.billing.GetUpcomingInvoice, UPCOMING)
    assert (shown.total_nanos, shown.number, [line.proration for line in shown.lines]) == (19 * USD, "", [False])
    shop.later(days=31, hours=2)
    made = acme.invoices()[0]
    assert (made.total * CENT, made.lines.data[0].period.start) == (
        shown.total_nanos,
        shown.lines[0].period_start.seconds,
    )


def test_upcoming_invoice_of_a_metered_plan_counts_what_was_used(shop):
    acme = shop.customer()
    acme.subscribe("metered-standard")
    shop.sandbox.v1.billing.meter_events.create(
        {
            "event_name": "tollkeeper_agent_executions",
            "payload": {"stripe_customer_id": acme.customer_id, "value": "5007"},
        }
    )
    shown = acme.ask(acme.billing.GetUpcomingInvoice, UPCOMING)
    assert shown.total_nanos == 99 * USD + 7 * USD // 10


def test_subscription_that_ends_has_no_invoice_to_come(shop):
    acme = shop.customer()
    error = acme.refused(acme.billing.GetUpcomingInvoice, UPCOMING)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "INVOICE_NOT_FOUND")
    acme.subscribe("starter")
    acme.cancel()
    assert acme.refused(acme.billing.GetUpcomingInvoice, UPCOMING).reason == "INVOICE_NOT_FOUND"


def test_stripe_that_is_away_is_told_as_that(shop):
    acme = shop.customer()
    acme.subscribe("starter")
    shop.sandbox.outage(60)
    for method, request in (
        (acme.billing.ListInvoices, pb.ListInvoicesRequest()),
        (acme.billing.GetUpcomingInvoice, UPCOMING),
        (acme.billing.PreviewSubscription, pb.PreviewSubscriptionRequest(plan="professional")),
    ):
        assert acme.refused(method, request).reason == "STRIPE_UNAVAILABLE"
