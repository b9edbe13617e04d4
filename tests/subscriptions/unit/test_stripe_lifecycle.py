from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.subscriptions.model.account import Account
from services.subscriptions.stripe.lifecycle import standing
from services.subscriptions.stripe.model import KeptPlan, PlanKey, SubscriptionState

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
FREE, STARTER, PRO = PlanKey("free", 1), PlanKey("starter", 1), PlanKey("professional", 1)
GRACE = 14 * DAY

ACCOUNT = Account(
    account_id="acme", display_name="", email="", plan_id="free", plan_version=1, status="active",
    cycle_anchor=NOW - 40 * DAY, created_at=NOW - 40 * DAY, created_as="", revision=1, renews_grant=True,
    granted_until=None,
)  # fmt: skip
STATE = SubscriptionState(
    subscription_id="sub_1", status="active", plan=STARTER, interval="month", price_nanos=19_000_000_000,
    period_start=NOW - DAY, period_end=NOW + 29 * DAY, billing_anchor=NOW - DAY, cancel_at_period_end=False,
)  # fmt: skip


def at(subscription, *, account=ACCOUNT, known=None, now=NOW):
    return standing(account, known, subscription, free=FREE, grace=GRACE, now=now)


def after(place, account=ACCOUNT):
    """The account once that is written."""
    plan = place.plan or PlanKey(account.plan_id, account.plan_version)
    return replace(
        account,
        plan_id=plan.plan_id,
        plan_version=plan.version,
        status=place.status,
        cycle_anchor=place.cycle_anchor,
    )


@pytest.mark.parametrize("status", ["active", "trialing"])
def test_in_force_gives_the_plan_and_its_cycles(status):
    place = at(replace(STATE, status=status))
    assert (place.plan, place.status, place.cycle_anchor) == (STARTER, "active", NOW - DAY)


@pytest.mark.parametrize("status", ["paused", "unpaid", "canceled", "incomplete", "incomplete_expired"])
def test_what_is_not_in_force_takes_away_what_it_gave_and_gives_nothing(status):
    over = replace(STATE, status=status)
    assert at(over).plan is None, "it never gave anything"
    before = at(STATE)
    place = at(over, account=after(before), known=before.mirror)
    assert (place.plan, place.status) == (FREE, "active")
    again = at(over, account=after(place), known=place.mirror)
    assert again.plan is None, "what an operator gives after that stays"


def test_subscription_that_is_gone_takes_away_what_it_gave():
    before = at(STATE)
    place = at(None, account=after(before), known=before.mirror)
    assert (place.plan, place.mirror.status, place.mirror.in_force) == (FREE, "canceled", False)


@pytest.mark.parametrize(
    ("days", "plan", "status"), [(0, STARTER, "grace"), (13.9, STARTER, "grace"), (14, FREE, "limited")]
)
def test_failed_payment_has_its_grace_then_limits(days, plan, status):
    failing = replace(STATE, status="past_due", failing_since=NOW)
    place = at(failing, now=NOW + days * DAY)
    assert (place.plan, place.status, place.mirror.grace_until) == (plan, status, NOW + GRACE)
    if status == "grace":
        assert place.mirror.look_at <= NOW + GRACE, "looked at again when the grace ends"


def test_grace_is_counted_from_the_first_failure_though_stripe_does_not_say_it():
    failing = replace(STATE, status="past_due")
    first = at(failing)
    later = at(failing, account=after(first), known=first.mirror, now=NOW + 5 * DAY)
    assert later.mirror.failing_since == NOW
    other = replace(failing, subscription_id="sub_2")
    assert at(other, known=first.mirror, now=NOW + 5 * DAY).mirror.failing_since == NOW + 5 * DAY


def test_paid_restores():
    limited = at(replace(STATE, status="past_due", failing_since=NOW - 20 * DAY))
    place = at(STATE, account=after(limited), known=limited.mirror)
    assert (place.plan, place.status, place.mirror.grace_until) == (STARTER, "active", None)


def test_dearer_plan_is_kept_until_what_was_paid_for_ends():
    kept = replace(STATE, kept=KeptPlan(PRO, NOW + 3 * DAY))
    place = at(kept)
    assert (place.plan, place.mirror.plan_id, place.mirror.pending_plan_id) == (PRO, "professional", "starter")
    assert place.mirror.look_at == NOW + 3 * DAY
    place = at(kept, now=NOW + 3 * DAY)
    assert (place.plan, place.mirror.pending_plan_id) == (STARTER, "")


@pytest.mark.parametrize("stopped", ["suspended", "closed"])
@pytest.mark.parametrize("status", ["active", "past_due", "canceled"])
def test_what_an_operator_stopped_stays_stopped(stopped, status):
    assert at(replace(STATE, status=status), account=replace(ACCOUNT, status=stopped)).status == stopped


def test_cycles_of_a_trial_begin_with_it():
    trial = replace(STATE, status="trialing", billing_anchor=NOW + 13 * DAY, trial_end=NOW + 13 * DAY)
    place = at(trial)
    assert place.cycle_anchor == NOW - DAY
    assert place.mirror.look_at == NOW + 13 * DAY


def test_cycle_that_begins_in_a_moment_is_taken_when_it_has_begun():
    """Stripe's clock may be ahead of ours."""
    soon = NOW + timedelta(seconds=2)
    ahead = replace(STATE, period_start=soon, billing_anchor=soon)
    place = at(ahead)
    assert (place.plan, place.cycle_anchor, place.mirror.look_at) == (STARTER, ACCOUNT.cycle_anchor, soon)
    assert at(ahead, now=soon).cycle_anchor == soon


def test_renewal_is_looked_for_soon_after_the_period_ends_and_again_when_stripe_was_late():
    ends = STATE.period_end
    looks, now = [], NOW
    for _ in range(4):
        now = at(STATE, now=now).mirror.look_at
        looks.append(now - ends)
    minute = timedelta(minutes=1)
    assert looks == [minute, 10 * minute, 120 * minute, 180 * minute]


states = st.builds(
    SubscriptionState,
    subscription_id=st.sampled_from(["sub_1", "sub_2"]),
    status=st.sampled_from([
        "active", "trialing", "past_due", "unpaid", "paused", "canceled", "incomplete", "incomplete_expired",
    ]),
    plan=st.sampled_from([STARTER, PRO]),
    interval=st.sampled_from(["month", "year"]),
    price_nanos=st.just(0),
    period_start=st.integers(-30, 1).map(lambda days: NOW + days * DAY),
    period_end=st.integers(1, 30).map(lambda days: NOW + days * DAY),
    billing_anchor=st.integers(-60, 20).map(lambda days: NOW + days * DAY),
    cancel_at_period_end=st.booleans(),
    failing_since=st.none() | st.integers(-30, 0).map(lambda days: NOW + days * DAY),
    kept=st.none() | st.builds(KeptPlan, st.just(PRO), st.integers(-3, 3).map(lambda days: NOW + days * DAY)),
)  # fmt: skip


@given(st.lists(states, max_size=5), states)
def test_only_the_newest_state_counts_and_telling_it_again_changes_nothing(history, newest):
    account, known = ACCOUNT, None
    for state in history:
        place = at(state, account=account, known=known)
        account, known = after(place, account), place.mirror
    place = at(newest, account=account, known=known)
    settled = after(place, account)
    assert at(newest, account=settled, known=place.mirror).mirror == place.mirror
    assert after(at(newest, account=settled, known=place.mirror), settled) == settled
    if newest.in_force:
        fresh = at(newest)
        same = known is None or known.subscription_id != newest.subscription_id or newest.failing_since is not None
        if same or newest.status != "past_due":
            assert (place.plan, place.status) == (fresh.plan, fresh.status)
    elif known is not None and known.in_force:
        assert place.plan == FREE
    assert place.mirror.look_at is None or place.mirror.look_at > NOW
