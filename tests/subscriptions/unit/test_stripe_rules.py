"""The pure rules of what is asked of Stripe: moves between plans, names, addresses, errors, auto-recharge, prices."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import pytest
import stripe
from subscriptions_peers import USD

from services.kit.validation import Violations
from services.subscriptions.errors import SubscriptionUnmovable
from services.subscriptions.model.plan import Plan, PlanMetric
from services.subscriptions.stripe import names
from services.subscriptions.stripe.catalogue import CatalogueError, price_keys, wanted, whole_cents
from services.subscriptions.stripe.client import refusal
from services.subscriptions.stripe.metered_items import exchanged
from services.subscriptions.stripe.moves import Move, Position, is_above, move, used_share
from services.subscriptions.stripe.recharge_rules import Decision, RechargeRule, decide, lifts, month_start
from services.subscriptions.stripe.urls import return_url


def plan(plan_id="starter", dollars=19, **changes):
    numbers = dict.fromkeys(
        ("annual_discount_basis_points", "promotional_grant_nanos", "credit_nanos", "tokens_per_cycle",
         "requests_per_cycle", "max_tokens_per_request", "requests_per_minute", "tokens_per_minute",
         "multiplier_millionths", "overage_nanos_per_million_tokens", "rollover_cap_nanos", "warn_percent"), 0,
    )  # fmt: skip
    made = Plan(
        plan_id=plan_id, version=1, display_name="", kind="subscription", providers=(), models=(), metrics=(),
        retired=False, price_nanos=dollars * USD, **numbers,
    )  # fmt: skip
    return replace(made, **changes)


CHEAP, DEAR, DEAREST = plan("starter", 19), plan("professional", 99), plan("business", 499)
METERED = plan("metered-standard", 99, kind="metered")


# Moves


@pytest.mark.parametrize(
    ("position", "target", "interval", "how"),
    [
        (Position(CHEAP, "month"), CHEAP, "month", Move.NONE),
        (Position(CHEAP, "month"), DEAR, "month", Move.AT_ONCE),
        (Position(CHEAP, "month"), plan("other", 19), "month", Move.AT_ONCE),
        (Position(CHEAP, "month"), CHEAP, "year", Move.AT_ONCE),
        (Position(CHEAP, "month"), DEAR, "year", Move.AT_ONCE),
        (Position(CHEAP, "year"), DEAR, "year", Move.AT_ONCE),
        (Position(DEAR, "month"), CHEAP, "month", Move.AT_PERIOD_END),
        (Position(DEAR, "year"), CHEAP, "year", Move.AT_PERIOD_END),
        (Position(CHEAP, "month", DEAR), DEAR, "month", Move.BACK),
        (Position(CHEAP, "month", DEAREST), DEAR, "month", Move.AT_PERIOD_END),
        (Position(CHEAP, "month", DEAR), DEAREST, "month", Move.AT_ONCE),
        (Position(CHEAP, "month", DEAR), CHEAP, "month", Move.NONE),
        (Position(CHEAP, "month", DEAR), DEAR, "year", Move.AT_ONCE),
        (Position(DEAR, "month"), METERED, "month", Move.AT_ONCE),
        (Position(METERED, "month"), DEAREST, "month", Move.AT_ONCE),
        (Position(METERED, "month"), DEAR, "year", Move.AT_ONCE),
        (Position(METERED, "month"), CHEAP, "month", Move.AT_PERIOD_END),
    ],
)
def test_move_is_paid_now_or_comes_with_the_period(position, target, interval, how):
    assert move(position, target, interval) is how


@pytest.mark.parametrize(
    ("position", "target", "interval"),
    [
        (Position(CHEAP, "year"), CHEAP, "month"),
        (Position(CHEAP, "year"), DEAREST, "month"),
        (Position(DEAR, "month"), CHEAP, "year"),
        (Position(CHEAP, "month", DEAR), CHEAP, "year"),
        (Position(METERED, "month"), DEAR, "month"),
        (Position(METERED, "month"), replace(METERED, plan_id="metered-other"), "month"),
        (Position(CHEAP, "month", METERED), DEAR, "month"),
    ],
)
def test_move_that_cannot_be_paid_for_rightly_is_refused(position, target, interval):
    with pytest.raises(SubscriptionUnmovable):
        move(position, target, interval)


SOLD = (
    PlanMetric("llm_tokens", 1_000_000, 20 * USD, "soft"),
    PlanMetric("agent_executions", 500, 100_000 * USD, "soft"),
    PlanMetric("storage_gb", 100, 500_000 * USD, "soft"),
)


@pytest.mark.parametrize(
    ("used", "share"),
    [
        ({}, 0),
        ({"llm_tokens": 500_000}, Fraction(10, 99)),
        ({"llm_tokens": 5_000_000, "agent_executions": 10}, Fraction(21, 99)),
        ({"agent_executions": 400}, Fraction(40, 99)),
        ({"agent_executions": 5000, "llm_tokens": 10**9}, Fraction(70, 99)),
        ({"storage_gb": 100}, 0),
    ],
)
def test_what_is_used_up_is_worth_what_it_would_cost_above(used, share):
    assert used_share(replace(METERED, metrics=SOLD), used) == share


def test_use_is_above_what_a_plan_includes_where_one_metric_is():
    sold = replace(METERED, metrics=SOLD)
    assert not is_above(sold, {"llm_tokens": 1_000_000, "storage_gb": 100, "api_calls": 7})
    assert is_above(sold, {"llm_tokens": 1_000_001})
    assert is_above(sold, {"storage_gb": 101})


def test_what_is_used_up_is_worth_the_whole_price_at_most():
    dear = PlanMetric("agent_executions", 5000, 100_000 * USD, "soft")
    capped = PlanMetric("api_calls", 100, 0, "hard")
    assert used_share(replace(METERED, metrics=(dear,)), {"agent_executions": 5000}) == 1
    assert used_share(replace(METERED, metrics=(capped,)), {"api_calls": 25}) == Fraction(1, 4)


# Names


def test_lookup_keys_say_what_they_were_made_of():
    assert names.price_key("starter", 3, "year") == "tk:starter:3:year"
    read = names.read_price_key("tk:starter:3:year")
    assert (read.plan_id, read.plan_version, read.part, read.is_base) == ("starter", 3, "year", True)
    assert not names.read_price_key(names.metric_price_key("metered", 1, "api_calls")).is_base


@pytest.mark.parametrize(
    "key", [None, "", "mugs", "tk:starter", "tk:starter:x:month", "tk::1:month", "tk:a:1:", "x:a:1:b"]
)
def test_lookup_key_of_somebody_else_is_not_read(key):
    assert names.read_price_key(key) is None


def test_longest_ids_make_an_idempotency_key_that_stripe_takes():
    assert len(names.idempotency_key("a" * 64, "subscription", "r" * 64)) <= 255


# Addresses


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/",
        "https://a.example:8443/x?y={CHECKOUT_SESSION_ID}#z",
        "http://localhost:3000/",
        "http://[::1]/",
    ],
)
def test_address_that_a_browser_may_be_sent_to(url):
    v = Violations()
    assert return_url(v, "success_url", url, "") == url
    assert v.found == []


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/", "javascript:alert(1)", "data:text/html,x", "//a.example/", "/here", "https://",
        "https://a@b.example/", "https://a.example\\@b.example/", "https://a.example/ x", "https://a.example/\r\nx",
        "https://a.example:99999/", "https://[::1/", "http://localhost.a.example/", "HTTP://a.example/", "https://a\x00b/",
    ],
)  # fmt: skip
def test_address_that_no_browser_is_sent_to_is_named(url):
    v = Violations()
    return_url(v, "success_url", url, "")
    assert [violation.field for violation in v.found] == ["success_url"]


def test_address_not_given_is_the_default():
    assert return_url(Violations(), "success_url", "", "http://inside:8080/") == "http://inside:8080/"


# Errors


def invalid(message="no", code=None):
    return stripe.InvalidRequestError(message, None, code, http_status=400)


ERRORS = [
    (stripe.CardError("Your card was declined.", None, "card_declined", http_status=402), "PAYMENT_FAILED"),
    (stripe.APIConnectionError("no answer"), "STRIPE_UNAVAILABLE"),
    (stripe.RateLimitError("slow down", http_status=429), "STRIPE_UNAVAILABLE"),
    (stripe.APIError("fault", http_status=500), "STRIPE_UNAVAILABLE"),
    (stripe.APIError("fault", http_status=503), "STRIPE_UNAVAILABLE"),
    (stripe.APIError("in progress", http_status=409), "STRIPE_UNAVAILABLE"),
    (stripe.IdempotencyError("other words", http_status=400), "IDEMPOTENCY_CONFLICT"),
    (stripe.AuthenticationError("no key", http_status=401), "STRIPE_KEY_INVALID"),
    (stripe.PermissionError("not this key", http_status=403), "STRIPE_KEY_INVALID"),
    (invalid(), "STRIPE_REFUSED"),
    (invalid("No such customer", "resource_missing"), "STRIPE_REFUSED"),
    (
        invalid("This customer has no attached payment source or default payment method.", "resource_missing"),
        "PAYMENT_METHOD_MISSING",
    ),
]


@pytest.mark.parametrize(("error", "reason"), ERRORS, ids=[f"{type(e).__name__}-{e.http_status}" for e, _ in ERRORS])
def test_what_can_be_retried_is_told_from_what_cannot(error, reason):
    assert refusal(error, "test").reason == reason


def test_only_what_can_be_retried_says_when():
    retried = {reason for error, reason in ERRORS if refusal(error, "test").retry_after_seconds}
    assert retried == {"STRIPE_UNAVAILABLE"}


# Auto-recharge

RULE = RechargeRule("acme", True, threshold_nanos=10, amount_nanos=20, monthly_cap_nanos=50, armed=True)


@pytest.mark.parametrize(
    ("changes", "available", "bought", "decision"),
    [
        ({}, 9, 0, Decision.BUY),
        ({}, 10, 0, Decision.NOTHING),
        ({}, -5, 0, Decision.BUY),
        ({}, 9, 30, Decision.BUY),
        ({}, 9, 31, Decision.CAPPED),
        ({"monthly_cap_nanos": 0}, 9, 10**18, Decision.BUY),
        ({"armed": False}, 9, 0, Decision.NOTHING),
        ({"armed": False}, 10, 0, Decision.ARM),
        ({"enabled": False}, 9, 0, Decision.NOTHING),
        ({"enabled": False, "armed": False}, 10, 0, Decision.ARM),
    ],
)
def test_credit_is_bought_below_the_threshold_within_the_cap(changes, available, bought, decision):
    assert decide(replace(RULE, **changes), available, bought) is decision


def test_purchase_lifts_the_balance_where_it_reaches_the_threshold():
    assert lifts(RULE, -10)
    assert not lifts(RULE, -11)


def test_month_of_a_cap_is_utc():
    assert month_start(datetime(2026, 2, 28, 23, 59, 59, 5, UTC)) == datetime(2026, 2, 1, tzinfo=UTC)


# Prices


def metered(included, rate, cap="soft"):
    metric = PlanMetric(metric="llm_tokens", included=included, overage_nanos_per_million=rate, cap=cap)
    return plan("metered", 99, kind="metered", metrics=(metric,))


def test_plan_is_sold_by_month_and_year_and_a_billed_one_by_the_month():
    assert price_keys(CHEAP, "year") == ("tk:starter:1:year",)
    assert [price.lookup_key for price in wanted([CHEAP]).prices] == ["tk:starter:1:month", "tk:starter:1:year"]
    keys = [price.lookup_key for price in wanted([metered(10, 20 * USD)]).prices]
    assert keys == ["tk:metered:1:month", "tk:metered:1:llm_tokens"]


@pytest.mark.parametrize("never", [metered(10, 0), metered(10, 20 * USD, cap="hard")], ids=["no overage", "hard cap"])
def test_metric_that_is_never_billed_has_no_price_and_no_meter(never):
    made = wanted([never])
    assert [price.metric for price in made.prices if price.metric] == []
    assert made.meters == ()


@pytest.mark.parametrize(
    "unsold", [plan("free", 0), plan("payg", 5, kind="prepaid"), plan("legacy", 5, retired=True)],
    ids=["free", "prepaid", "retired"],
)  # fmt: skip
def test_plan_that_no_subscription_is_for_is_not_in_the_catalogue(unsold):
    assert wanted([unsold]) == wanted([])


def test_overage_is_exact_to_twelve_decimals_of_a_cent():
    (tier,) = wanted([metered(0, 10)]).prices[1].tiers
    assert (tier.up_to, tier.cents) == (None, Decimal("0.000000000001"))
    with pytest.raises(CatalogueError, match="more decimals of a cent than Stripe keeps"):
        wanted([metered(0, 9)])


def test_amount_above_what_stripe_charges_is_refused():
    assert whole_cents(99_999_999 * names.NANOS_PER_CENT, "x") == 99_999_999
    with pytest.raises(CatalogueError, match="more than Stripe charges at once"):
        whole_cents(100_000_000 * names.NANOS_PER_CENT, "x")


def test_metered_items_are_exchanged_for_those_wanted():
    held = [SimpleNamespace(id=f"si_{name}", price=SimpleNamespace(id=f"price_{name}")) for name in "ab"]
    assert exchanged(held, ["price_b", "price_c"]) == [{"id": "si_a", "deleted": True}, {"price": "price_c"}]
    assert exchanged(held, ["price_a", "price_b"]) == []
