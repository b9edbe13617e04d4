"""Changes of a subscription: what a move costs, when it takes effect, and that it is paid once."""

from datetime import UTC, datetime, timedelta

import grpc
import pytest
from subscriptions_peers import USD
from subscriptions_shop import CENT, at_once, own_price
from subscriptions_stripe import FAILS_LATER, PAYS
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb

from services.kit.errors import RemoteError

UPDATES = "/v1/subscriptions/*"


@pytest.fixture
def subscribed(shop):
    """`subscribed("starter", days=10)`: a customer who subscribed so long ago, by the test clock."""

    def make(plan="starter", *, days=10, **more):
        shop.start_clock()
        acme = shop.customer()
        acme.subscribe(plan, **more)
        if days:
            shop.later(days=days)
        return acme

    return make


def lines_of(invoice):
    """Of Stripe's, as the contract writes them."""
    return sorted(
        (line.description, line.amount * CENT, line.period.start, line.period.end) for line in invoice.lines.data
    )


def lines_shown(invoice):
    return sorted(
        (line.description, line.amount_nanos, line.period_start.seconds, line.period_end.seconds)
        for line in invoice.lines
    )


def moment(stamp):
    return stamp.ToDatetime(tzinfo=UTC)


# Up, at once


@pytest.mark.parametrize(
    ("start", "to", "interval"),
    [
        ("starter", "professional", ""),
        ("starter", "business", ""),
        ("starter", "starter", "year"),
        ("starter", "professional", "year"),
        ("metered-standard", "business", ""),
        ("starter", "metered-standard", ""),
    ],
)
def test_upgrade_costs_to_the_cent_what_was_shown(shop, subscribed, start, to, interval):
    acme = subscribed(start)
    shown = acme.preview(to, interval)
    before = acme.charged()
    assert shown.amount_due_nanos > 0
    shop.later(seconds=600)  # the payer thinks about it
    moved = acme.update(plan=to, interval=interval)
    invoice = acme.invoices()[0]
    assert (invoice.total * CENT, invoice.amount_due * CENT) == (shown.total_nanos, shown.amount_due_nanos)
    if not (interval or to.startswith("metered")):  # a new period begins when the move is made
        assert lines_of(invoice) == lines_shown(shown)
    assert [line[:2] for line in lines_of(invoice)] == [line[:2] for line in lines_shown(shown)]
    assert (invoice.status, acme.charged()) == ("paid", [*before, shown.amount_due_nanos // CENT])
    assert (moved.plan, moved.interval, moved.pending_plan) == (to, interval or "month", "")
    assert own_price(acme.subscription) == f"tk:{to}:1:{interval or 'month'}"


def test_upgrade_is_prorated_by_the_second(subscribed):
    acme = subscribed(days=0)
    acme.shop.later(hours=12, seconds=7)
    acme.update(plan="professional")
    item = acme.subscription["items"].data[0]
    left = item.current_period_end - acme.shop.clock().timestamp()
    share = left / (item.current_period_end - item.current_period_start)
    assert abs(acme.charged()[1] - 8000 * share) <= 1


def test_price_that_was_shown_too_long_ago_holds_no_more(shop, subscribed):
    acme = subscribed()
    shown = acme.preview("business")
    shop.later(hours=30)
    acme.update(plan="business")
    assert acme.charged()[1] < shown.amount_due_nanos // CENT


def test_price_shown_from_another_plan_holds_no_more(shop, subscribed):
    acme = subscribed(days=1)
    acme.preview("business")
    shop.later(seconds=600)
    acme.update(plan="professional")
    asked = int(shop.clock().timestamp())
    acme.update(plan="business")
    (date,) = {line.period.start for line in acme.invoices()[0].lines.data}
    assert asked <= date <= shop.clock().timestamp()


def test_preview_changes_and_charges_nothing(subscribed):
    acme = subscribed()
    acme.preview("professional")
    acme.preview("professional", "year")
    error = acme.refused(acme.billing.PreviewSubscription, pb.PreviewSubscriptionRequest(plan="free"))
    assert error.reason == "INVOICE_NOT_FOUND"  # nothing further would be invoiced
    assert not acme.subscription.cancel_at_period_end
    assert (own_price(acme.subscription), acme.charged(), len(acme.invoices())) == ("tk:starter:1:month", [1900], 1)


def test_preview_of_a_downgrade_is_the_next_periods_invoice(shop, subscribed):
    acme = subscribed("professional")
    shown = acme.preview("starter")
    assert shown.amount_due_nanos == 19 * USD
    acme.update(plan="starter")
    shop.later(days=22)
    assert acme.invoices()[0].amount_paid * CENT == shown.amount_due_nanos


def test_preview_of_the_plan_it_has_is_the_invoice_to_come(subscribed):
    acme = subscribed()
    upcoming = acme.ask(acme.billing.GetUpcomingInvoice, pb.GetUpcomingInvoiceRequest())
    assert acme.preview("starter").total_nanos == upcoming.total_nanos == 19 * USD


def test_preview_without_a_subscription_is_the_first_invoice(shop):
    acme = shop.customer()
    shown = acme.preview("professional", "year")
    acme.subscribe("professional", interval="year")
    assert acme.invoices()[0].total * CENT == shown.total_nanos
    assert (shown.number, shown.hosted_invoice_url) == ("", "")


def test_declined_upgrade_changes_nothing_and_gives_nothing(shop, subscribed):
    acme = subscribed()
    acme.give_card("pm_card_chargeCustomerFail")
    error = acme.update_refused(plan="professional", request_id="r1")
    assert (error.reason, error.metadata["code"]) == ("PAYMENT_FAILED", "card_declined")
    assert (own_price(acme.subscription), acme.subscription.status) == ("tk:starter:1:month", "active")
    assert acme.charged() == [1900]
    assert {invoice.status for invoice in acme.invoices()} <= {"paid", "void"}
    acme.give_card(PAYS)
    assert acme.update(plan="professional", request_id="r2").plan == "professional"
    assert len(acme.charged()) == 2


def test_upgrade_without_a_card_changes_nothing(shop, subscribed):
    acme = subscribed()
    v1 = shop.sandbox.v1
    for method in v1.payment_methods.list({"customer": acme.customer_id}).data:
        v1.payment_methods.detach(method.id)
    error = acme.update_refused(plan="professional")
    assert error.reason in {"PAYMENT_METHOD_MISSING", "PAYMENT_FAILED"}
    assert own_price(acme.subscription) == "tk:starter:1:month"


def test_upgrade_of_a_subscription_that_owes_is_refused(shop, subscribed):
    acme = subscribed(card=FAILS_LATER, days=10)
    shop.later(days=22)
    assert acme.subscription.status == "past_due"
    error = acme.update_refused(plan="professional")
    assert error.reason == "SUBSCRIPTION_UNMOVABLE"
    assert own_price(acme.subscription) == "tk:starter:1:month"


def test_metered_items_go_and_come_with_the_plan(subscribed):
    acme = subscribed("metered-standard")
    acme.update(plan="business")
    assert [item.price.lookup_key for item in acme.subscription["items"].data] == ["tk:business:1:month"]
    acme.cancel(now=True)
    acme.subscribe("business")


# Once


def test_repeated_upgrade_answers_the_same_and_charges_once(subscribed):
    acme = subscribed()
    first = acme.update(plan="professional", request_id="r1")
    acme.update(plan="business", request_id="r2")
    charged = acme.charged()
    request = pb.UpdateSubscriptionRequest(plan="professional", request_id="r1")
    assert acme.ask(acme.billing.UpdateSubscription, request) == first
    assert acme.caller.trailing(acme.billing.UpdateSubscription, request)["idempotency-replayed"] == "true"
    assert (acme.charged(), own_price(acme.subscription)) == (charged, "tk:business:1:month")


def test_request_id_of_another_change_is_refused(subscribed):
    acme = subscribed()
    acme.update(plan="professional", request_id="r1")
    for other in ({"plan": "business"}, {"plan": "professional", "interval": "year"}, {"resume": True}):
        error = acme.update_refused(request_id="r1", **other)
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT")


FAULTS = [("status", {"status": 429}), ("status", {"status": 500}), ("cut", {}), ("cut-before", {})]
FAULT_IDS = ["429", "500", "cut", "cut-before"]


@pytest.mark.parametrize(("fault", "more"), FAULTS, ids=FAULT_IDS)
def test_upgrade_asked_for_again_after_a_fault_charges_once(shop, subscribed, fault, more):
    acme = subscribed()
    shop.sandbox.fault(fault, UPDATES, count=3, **more)
    error = acme.update_refused(plan="professional", request_id="r1")
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STRIPE_UNAVAILABLE")
    shop.sandbox.clear_faults()
    assert acme.update(plan="professional", request_id="r1").plan == "professional"
    assert len(acme.charged()) == 2


@pytest.mark.parametrize(("fault", "more"), FAULTS, ids=FAULT_IDS)
def test_upgrade_without_a_request_id_asked_for_again_charges_once(shop, subscribed, fault, more):
    acme = subscribed()
    shop.sandbox.fault(fault, UPDATES, count=3, **more)
    assert acme.update_refused(plan="professional").reason == "STRIPE_UNAVAILABLE"
    shop.sandbox.clear_faults()
    assert acme.update(plan="professional").plan == "professional"
    assert len(acme.charged()) == 2


@pytest.mark.parametrize(("fault", "more"), FAULTS[1:], ids=FAULT_IDS[1:])
def test_passing_fault_is_not_seen_by_who_asks(shop, subscribed, fault, more):
    acme = subscribed()
    shop.sandbox.fault(fault, UPDATES, **more)
    assert acme.update(plan="professional").plan == "professional"
    assert len(acme.charged()) == 2


def test_what_stripe_refuses_is_no_fault_to_retry(shop, subscribed):
    acme = subscribed()
    shop.sandbox.fault("status", UPDATES, status=400, count=1)
    error = acme.update_refused(plan="professional", request_id="r1")
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "STRIPE_REFUSED")
    assert len(acme.charged()) == 1


@pytest.mark.parametrize("request_ids", [["r1"] * 6, [f"r{n}" for n in range(6)], [""] * 6], ids=["same", "own", "no"])
def test_upgrades_asked_for_at_once_charge_once(shop, subscribed, request_ids):
    acme = subscribed()
    shop.sandbox.fault("slow", UPDATES, delay_ms=300, count=6)
    answers = at_once(*[lambda one=one: acme.update(plan="professional", request_id=one) for one in request_ids])
    for answer in answers:
        assert not isinstance(answer, Exception) or RemoteError.from_rpc(answer).code is grpc.StatusCode.UNAVAILABLE
    assert any(not isinstance(answer, Exception) for answer in answers)
    assert (len(acme.charged()), own_price(acme.subscription)) == (2, "tk:professional:1:month")


def test_unanswered_request_is_not_asked_for_again_when_stripe_may_have_forgotten_it(shop, subscribed):
    acme = subscribed()
    shop.sandbox.fault("cut", UPDATES, count=1)
    shop.sandbox.fault("cut-before", UPDATES, count=2)
    acme.update_refused(plan="professional", request_id="r1")
    acme.update(plan="starter")  # back again
    words = "UPDATE stripe_requests SET created_at = now() - interval '20 hours 1 minute' WHERE request_id = 'r1'"
    shop.database.rows(words)
    error = acme.update_refused(plan="professional", request_id="r1")
    assert (error.reason, "not known" in error.message) == ("IDEMPOTENCY_CONFLICT", True)
    assert len(acme.charged()) == 2


# Down, with the period


def test_downgrade_keeps_what_is_paid_and_costs_less_from_the_next_period_on(shop, subscribed):
    acme = subscribed("professional")
    moved = acme.update(plan="starter")
    assert (moved.plan, moved.pending_plan) == ("professional", "starter")
    assert moved.price_nanos == 19 * USD
    assert acme.charged() == [9900]
    shop.later(days=22)
    assert acme.charged() == [9900, 1900]
    assert acme.update(resume=True).plan == "starter"
    assert acme.update(resume=True).pending_plan == ""


def test_downgrade_taken_back_costs_nothing(shop, subscribed):
    acme = subscribed("professional")
    acme.update(plan="starter")
    back = acme.update(plan="professional")
    assert (back.plan, back.pending_plan, back.price_nanos) == ("professional", "", 99 * USD)
    assert acme.charged() == [9900]
    shop.later(days=22)
    assert acme.charged() == [9900, 9900]


def test_plan_that_is_kept_is_paid_again_once_the_next_period_has_begun(shop, subscribed):
    acme = subscribed("professional")
    acme.update(plan="starter")
    shop.later(days=22)
    shop.clock.offset -= timedelta(days=4)  # our clock is behind Stripe's: by it the old period has not ended
    before = acme.charged()
    acme.update(plan="professional")
    assert len(acme.charged()) == len(before) + 1
    assert own_price(acme.subscription) == "tk:professional:1:month"


@pytest.mark.parametrize(("start", "to"), [("professional", "starter"), ("starter", "professional")])
def test_move_settled_in_one_period_is_not_made_in_the_next(shop, subscribed, start, to):
    acme = subscribed(start)
    shop.sandbox.fault("cut-before", UPDATES, count=3)
    assert acme.update_refused(plan=to, request_id="r1").reason == "STRIPE_UNAVAILABLE"
    shop.later(days=22)
    error = acme.update_refused(plan=to, request_id="r1")
    assert error.reason == "SUBSCRIPTION_UNMOVABLE"
    assert own_price(acme.subscription) == f"tk:{start}:1:month"
    assert acme.update(plan=to, request_id="r2").stripe_subscription_id


def test_taking_back_settled_before_the_periods_end_gives_nothing_after_it(shop, subscribed):
    acme = subscribed("professional")
    acme.update(plan="starter")
    shop.sandbox.fault("cut-before", UPDATES, count=3)
    acme.update_refused(plan="professional", request_id="r1")
    shop.later(days=22)
    assert acme.update_refused(plan="professional", request_id="r1").reason == "SUBSCRIPTION_UNMOVABLE"
    assert (own_price(acme.subscription), acme.charged()) == ("tk:starter:1:month", [9900, 1900])


def test_move_that_began_a_period_itself_is_answered_when_it_is_repeated(shop, subscribed):
    acme = subscribed()
    shop.sandbox.fault("cut", UPDATES, count=3)
    acme.update_refused(interval="year", request_id="r1")
    assert acme.update(interval="year", request_id="r1").interval == "year"
    assert len(acme.charged()) == 2


def test_upgrade_while_a_dearer_plan_is_kept_credits_what_was_paid_for_it(shop, subscribed):
    acme = subscribed("professional")
    acme.update(plan="starter")
    shown = acme.preview("business")
    moved = acme.update(plan="business")
    item = acme.subscription["items"].data[0]
    left = item.current_period_end - acme.shop.clock().timestamp()
    share = left / (item.current_period_end - item.current_period_start)
    assert (moved.plan, moved.pending_plan) == ("business", "")
    assert acme.charged()[1] * CENT == shown.amount_due_nanos
    assert abs(acme.charged()[1] - (49_900 - 9900) * share) <= 1


def test_older_version_of_a_plan_can_be_come_back_to(shop, subscribed, pricing, parts):
    acme = subscribed("professional")
    acme.update(plan="starter")
    pricing.publish("professional", price_nanos=120 * USD)
    assert acme.update(plan="professional").price_nanos == 99 * USD
    assert own_price(acme.subscription) == "tk:professional:1:month"


@pytest.mark.parametrize(
    ("start", "wish"),
    [
        ({"plan": "starter", "interval": "year"}, {"interval": "month"}),
        ({"plan": "starter", "interval": "year"}, {"plan": "professional", "interval": "month"}),
        ({"plan": "professional"}, {"plan": "starter", "interval": "year"}),
    ],
)
def test_move_that_would_be_paid_twice_or_never_is_refused(subscribed, start, wish):
    acme = subscribed(**start)
    error = acme.update_refused(**wish)
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SUBSCRIPTION_UNMOVABLE")
    assert len(acme.charged()) == 1


# The end


def test_move_to_free_ends_it_with_the_period_and_can_be_taken_back(shop, subscribed):
    acme = subscribed()
    assert acme.update(plan="free").cancel_at_period_end
    assert not acme.update(resume=True).cancel_at_period_end
    shop.later(days=22)
    assert acme.charged() == [1900, 1900]


def test_cancelled_subscription_ends_with_its_period_and_is_charged_no_more(shop, subscribed):
    acme = subscribed()
    ending = acme.cancel()
    assert (ending.cancel_at_period_end, ending.status) == (True, "active")
    shop.later(days=22)
    assert (acme.subscription.status, acme.charged()) == ("canceled", [1900])
    assert acme.update_refused(resume=True).reason == "SUBSCRIPTION_NOT_FOUND"


def test_subscription_cancelled_now_ends_now(subscribed):
    acme = subscribed()
    assert acme.cancel(now=True, request_id="r1").status == "canceled"
    assert acme.subscription.status == "canceled"
    assert acme.cancel(now=True, request_id="r1").status == "canceled"
    error = acme.refused(acme.billing.CancelSubscription, pb.CancelSubscriptionRequest(now=True))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SUBSCRIPTION_NOT_FOUND")
    assert acme.charged() == [1900]


def test_request_id_of_a_cancellation_says_now_or_later_once(subscribed):
    acme = subscribed()
    acme.cancel(request_id="r1")
    error = acme.refused(acme.billing.CancelSubscription, pb.CancelSubscriptionRequest(now=True, request_id="r1"))
    assert error.reason == "IDEMPOTENCY_CONFLICT"
    assert acme.subscription.status == "active"


def test_closed_account_can_still_be_cancelled(shop, subscribed):
    acme = subscribed()
    shop.database.rows("UPDATE accounts SET status = 'closed' WHERE account_id = :a", a=acme.account_id)
    assert acme.update_refused(plan="professional").reason == "ACCOUNT_STOPPED"
    assert acme.cancel(now=True).status == "canceled"


@pytest.mark.parametrize(("fault", "more"), FAULTS, ids=FAULT_IDS)
def test_cancellation_asked_for_again_after_a_fault_is_made(shop, subscribed, fault, more):
    acme = subscribed()
    shop.sandbox.fault(fault, UPDATES, method="DELETE", count=3, **more)
    request = pb.CancelSubscriptionRequest(now=True, request_id="r1")
    assert acme.refused(acme.billing.CancelSubscription, request).reason == "STRIPE_UNAVAILABLE"
    shop.sandbox.clear_faults()
    assert acme.ask(acme.billing.CancelSubscription, request).status == "canceled"


def test_after_the_end_the_account_may_subscribe_again(subscribed):
    acme = subscribed()
    acme.cancel(now=True)
    acme.subscribe("professional")
    assert [one.status for one in acme.subscriptions()] == ["active", "canceled"]


# Bad input, and whose


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "plan"),
        ({"plan": "a b"}, "plan"),
        ({"plan": "starter", "interval": "week"}, "interval"),
        ({"resume": True, "request_id": "a b"}, "request_id"),
    ],
)
def test_bad_change_is_named_and_asks_stripe_nothing(shop, fields, field):
    acme = shop.customer()
    shop.sandbox.outage(60)
    error = acme.update_refused(**fields)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]


def test_plan_by_the_year_that_is_sold_by_the_month_only_is_refused(subscribed):
    acme = subscribed()
    error = acme.update_refused(plan="metered-standard", interval="year")
    assert [violation.field for violation in error.violations] == ["interval"]
    assert acme.update_refused(plan="payg").reason == "PLAN_NOT_SUBSCRIBABLE"
    assert acme.update_refused(plan="legacy").reason == "PLAN_RETIRED"
    assert acme.update_refused(plan="nothing").reason == "PLAN_NOT_FOUND"
    assert own_price(acme.subscription) == "tk:starter:1:month"


def test_account_without_a_subscription_has_none_to_change(shop):
    acme = shop.customer()
    assert acme.update_refused(plan="starter").reason == "SUBSCRIPTION_NOT_FOUND"
    error = acme.refused(acme.billing.CancelSubscription, pb.CancelSubscriptionRequest())
    assert error.reason == "SUBSCRIPTION_NOT_FOUND"


def test_nobody_changes_another_accounts_subscription(shop):
    acme, other = shop.customer(), shop.customer("other")
    acme.subscribe()
    for method, request in (
        (other.billing.UpdateSubscription, pb.UpdateSubscriptionRequest(account_id=acme.account_id, plan="business")),
        (other.billing.CancelSubscription, pb.CancelSubscriptionRequest(account_id=acme.account_id, now=True)),
        (other.billing.PreviewSubscription, pb.PreviewSubscriptionRequest(account_id=acme.account_id, plan="business")),
        (other.billing.GetSubscription, pb.GetSubscriptionRequest(account_id=acme.account_id)),
    ):
        assert other.refused(method, request).code is grpc.StatusCode.PERMISSION_DENIED
    assert (acme.subscription.status, acme.charged()) == ("active", [1900])


def test_answer_tells_the_period_and_the_price(subscribed):
    acme = subscribed(days=3)
    told = acme.update(resume=True)
    item = acme.subscription["items"].data[0]
    assert (told.status, told.price_nanos, told.interval) == ("active", 19 * USD, "month")
    assert moment(told.current_period_start) == datetime.fromtimestamp(item.current_period_start, UTC)
    assert moment(told.current_period_end) == datetime.fromtimestamp(item.current_period_end, UTC)
