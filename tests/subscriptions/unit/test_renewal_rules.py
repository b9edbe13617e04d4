import pytest
import stripe

from services.subscriptions.stripe.renewal_rules import is_uncollected, is_waiting, uncollected_renewal

DRAFT = {
    "id": "in_1", "billing_reason": "subscription_cycle", "status": "draft", "auto_advance": True, "attempted": False,
    "collection_method": "charge_automatically", "currency": "usd",
}  # fmt: skip
OPEN = {"status": "open"}
SENT = {"collection_method": "send_invoice"}


def invoice(**changes):
    return stripe.Invoice.construct_from(DRAFT | changes, "sk_test")


def subscription(**changes):
    words = {"id": "sub_1", "object": "subscription", "status": "active", "pause_collection": None}
    return stripe.Subscription.construct_from(words | changes, "sk_test")


@pytest.mark.parametrize(
    "changes",
    [{}, SENT, OPEN],
    ids=["a draft", "a draft that will be sent", "made final and not charged yet"],
)
def test_renewals_that_stripe_would_collect_by_itself_are_collected(changes):
    assert is_uncollected(invoice(**changes))
    assert uncollected_renewal(subscription(), invoice(**changes), []) == "in_1"


@pytest.mark.parametrize(
    "changes",
    [
        {"billing_reason": "subscription_create"},
        {"billing_reason": "subscription_update"},
        {"billing_reason": "subscription_threshold"},
        {"billing_reason": "manual"},
        {"billing_reason": None},
        {"auto_advance": False},
        {"auto_advance": None},
        {"currency": "eur"},
        {"status": "paid"},
        {"status": "void"},
        {"status": "uncollectible"},
        OPEN | SENT,
        OPEN | {"attempted": True},
        OPEN | {"auto_advance": False},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()),
)
def test_everything_else_is_left(changes):
    assert not is_uncollected(invoice(**changes))
    assert uncollected_renewal(subscription(), invoice(**changes), []) == ""


@pytest.mark.parametrize("behavior", ["void", "mark_uncollectible", "keep_as_draft"])
def test_nothing_is_collected_while_collection_is_paused(behavior):
    paused = subscription(pause_collection={"behavior": behavior, "resumes_at": None})
    assert uncollected_renewal(paused, invoice(), []) == ""


def test_nothing_is_collected_where_something_is_metered_or_nothing_was_invoiced():
    item = stripe.SubscriptionItem.construct_from({"id": "si_1"}, "sk_test")
    assert uncollected_renewal(subscription(), invoice(), [item]) == ""
    assert uncollected_renewal(subscription(), None, []) == ""


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (subscription(), True),
        (subscription(status="past_due"), True),
        (subscription(status="canceled"), False),
        (subscription(status="unpaid"), False),
        (subscription(pause_collection={"behavior": "void"}), False),
        ("sub_1", False),
    ],
    ids=["going on", "owing", "ended", "unpaid", "paused", "not read with it"],
)
def test_what_is_asked_depends_on_the_subscription_as_it_is_then(of, expected):
    assert is_waiting(invoice(parent={"subscription_details": {"subscription": of}})) == expected


def test_invoice_of_no_subscription_is_left():
    assert not is_waiting(invoice(parent=None))
