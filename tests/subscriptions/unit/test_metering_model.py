"""Tallies, quotas and the words of reports, without I/O."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.subscriptions.metering.limits import is_worth_a_push, lowered
from services.subscriptions.metering.model import (
    GAUGES,
    METRICS,
    MeterEvent,
    ProxiedCall,
    Quota,
    QuotaTerms,
    Tally,
    Use,
    by_hour,
    cap_in_force,
    ceil_hour,
    gauge_stamp,
    in_minutes,
    meter_event_name,
    meter_formula,
    quota_terms,
    sum_stamp,
    tally_calls,
    tally_events,
)
from services.subscriptions.model.cycle import Cycle
from services.subscriptions.model.plan import Plan, PlanMetric

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def at(seconds):
    return NOON + timedelta(seconds=seconds)


def plan(**changes):
    numbers = dict.fromkeys(
        ("price_nanos", "annual_discount_basis_points", "promotional_grant_nanos", "credit_nanos", "tokens_per_cycle",
         "requests_per_cycle", "max_tokens_per_request", "requests_per_minute", "tokens_per_minute",
         "multiplier_millionths", "overage_nanos_per_million_tokens", "rollover_cap_nanos", "warn_percent"), 0,
    )  # fmt: skip
    words = {"plan_id": "p", "version": 1, "display_name": "", "kind": "metered", "retired": False}
    return Plan(**(numbers | words | {"providers": (), "models": (), "metrics": ()} | changes))


def test_events_add_up_by_account_metric_and_minute():
    tallies = tally_events([
        ("a", "api_calls", 1, at(0)), ("a", "api_calls", 2, at(59.9)), ("a", "api_calls", 4, at(60)),
        ("a", "llm_tokens", 8, at(0)), ("b", "api_calls", 16, at(0)),
    ])  # fmt: skip
    assert {key: tally.emitted for key, tally in tallies.items()} == {
        ("a", "api_calls", NOON): 3,
        ("a", "api_calls", at(60)): 4,
        ("a", "llm_tokens", NOON): 8,
        ("b", "api_calls", NOON): 16,
    }


def test_gauge_keeps_its_highest_and_its_latest_level_in_any_order():
    events = [("a", "user_seats", level, at(second)) for level, second in ((5, 1), (9, 2), (3, 4), (4, 4))]
    for order in itertools.permutations(events):
        assert tally_events(order) == {("a", "user_seats", NOON): Tally(9, 0, (at(4), 4))}


def test_call_is_one_api_call_and_its_tokens():
    tallies = tally_calls([ProxiedCall("a", 120, at(1)), ProxiedCall("a", 0, at(2)), ProxiedCall("b", 5, at(61))])
    assert tallies == {
        ("a", "api_calls", NOON): Tally(proxied=2),
        ("a", "llm_tokens", NOON): Tally(proxied=120),
        ("b", "api_calls", at(60)): Tally(proxied=1),
        ("b", "llm_tokens", at(60)): Tally(proxied=5),
    }


@given(st.lists(st.tuples(st.sampled_from(METRICS), st.integers(1, 10**12), st.integers(-7200, 7200)), max_size=50))
def test_hours_say_what_their_minutes_say(events):
    minutes = tally_events([("a", metric, quantity, at(second)) for metric, quantity, second in events])
    hours = by_hour(minutes)
    for metric in METRICS:
        added = [tally.emitted for (_, name, _), tally in minutes.items() if name == metric]
        kept = [tally.emitted for (_, name, _), tally in hours.items() if name == metric]
        together = max if metric in GAUGES else sum
        assert together(added or [0]) == together(kept or [0])


def test_cycle_in_minutes_owns_the_minute_it_begins_in():
    cycle = in_minutes(Cycle(at(30), at(30) + timedelta(days=30)))
    assert cycle == Cycle(NOON, NOON + timedelta(days=30))
    assert ceil_hour(NOON) == NOON
    assert ceil_hour(at(0.000001)) == NOON + timedelta(hours=1)


@pytest.mark.parametrize(
    ("rate", "overage", "nanos"),
    [
        (20_000_000_000, 1, 20_000),
        (500_000_000_000, 3, 1_500_000),
        (1, 500_000, 0),  # half a nano, to the even one
        (3, 500_000, 2),
        (1, 500_001, 1),
        (15_000_000_000_000_000, 10**12, 15 * 10**21),  # beyond any float
    ],
)
def test_overage_is_priced_exactly_and_rounded_half_even_once(rate, overage, nanos):
    quota = Quota(QuotaTerms("llm_tokens", 10, "soft", rate), Use(10 + overage, 10 + overage), NOON)
    assert (quota.overage, quota.remaining, quota.overage_nanos) == (overage, 0, nanos)


@given(st.integers(0, 10**12), st.integers(0, 10**15))
def test_overage_is_within_half_a_nano_of_the_exact_product(used, rate):
    quota = Quota(QuotaTerms("llm_tokens", 0, "soft", rate), Use(used, used), NOON)
    assert abs(quota.overage_nanos - Fraction(used * rate, 10**6)) <= Fraction(1, 2)


def test_quota_covers_to_the_last_unit():
    quota = Quota(QuotaTerms("api_calls", 10, "hard", 0), Use(7, 7), NOON)
    assert [quota.covers(more) for more in (3, 4)] == [True, False]


@pytest.mark.parametrize(
    ("status", "grace_ends", "expected"),
    [
        ("active", None, "soft"),
        ("grace", None, "soft"),
        ("grace", at(1), "soft"),
        ("grace", at(0), "hard"),
        ("limited", None, "hard"),
    ],
)
def test_soft_cap_is_hard_when_grace_is_over(status, grace_ends, expected):
    assert cap_in_force("soft", status, grace_ends, NOON) == expected
    assert cap_in_force("hard", status, grace_ends, NOON) == "hard"


def test_terms_come_from_metrics_else_from_tokens_and_requests_per_cycle():
    metered = plan(metrics=(PlanMetric("storage_gb", 100, 500, "soft"),))
    assert quota_terms(metered, "storage_gb") == QuotaTerms("storage_gb", 100, "soft", 500)
    assert quota_terms(metered, "api_calls") is None
    credits_plan = plan(kind="subscription", tokens_per_cycle=50, overage_nanos_per_million_tokens=7)
    assert quota_terms(credits_plan, "llm_tokens") == QuotaTerms("llm_tokens", 50, "hard", 7)
    assert quota_terms(credits_plan, "api_calls") is None
    assert quota_terms(credits_plan, "user_seats") is None


def test_identifier_of_any_report_is_within_what_stripe_takes():
    event = MeterEvent("a" * 64, "agent_executions", NOON, 99_999, 1, NOON, "cus_1")
    assert len(event.identifier) == 100
    assert MeterEvent("acme", "api_calls", NOON, 2, 1, NOON, "c").identifier == "acme:api_calls:202611211200:2"


def test_every_metric_has_a_meter():
    assert {metric: meter_formula(metric) for metric in METRICS} == {
        "llm_tokens": "sum", "api_calls": "sum", "agent_executions": "sum", "storage_gb": "last", "user_seats": "last",
    }  # fmt: skip
    assert meter_event_name("llm_tokens") == "tollkeeper_llm_tokens"


def test_sum_counts_in_the_cycle_in_which_its_minute_ends():
    assert sum_stamp(NOON) == at(59)


def test_each_mark_of_a_gauge_has_a_later_moment_within_its_cycle():
    cycle = Cycle(NOON, NOON + timedelta(days=30))
    assert gauge_stamp(cycle, at(90.5), None) == at(90)
    assert gauge_stamp(cycle, at(90), at(90)) == at(91)
    over = cycle.end + timedelta(days=3)
    late = gauge_stamp(cycle, over, at(90))
    later = gauge_stamp(cycle, over, late)
    assert at(90) < late < later < cycle.end
    assert gauge_stamp(cycle, NOON - timedelta(seconds=5), None) == NOON


def test_only_hard_limits_are_lowered_and_never_below_nothing():
    metrics = (PlanMetric("llm_tokens", 100, 0, "hard"), PlanMetric("api_calls", 10, 5, "soft"))
    made = plan(metrics=metrics)
    amounts = {x.unit: x.amount for x in lowered(made, {"llm_tokens": 30, "api_calls": 30})}
    assert amounts == {"tokens": 70, "requests": 10}
    assert lowered(made, {"llm_tokens": 500})[0].amount == 0


def test_limit_is_pushed_for_a_hundredth_or_when_nothing_is_left():
    made = plan(metrics=(PlanMetric("llm_tokens", 1000, 0, "hard"),))
    (whole,) = lowered(made, {})

    def worth(pushed, amount):
        return is_worth_a_push(made, pushed, (replace(whole, amount=amount),))

    assert not worth({}, 1000)
    assert not worth({}, 991)
    assert worth({}, 990)
    assert not worth({"tokens": 990}, 985)
    assert worth({"tokens": 5}, 0)
    assert worth({"tokens": 0}, 5)
