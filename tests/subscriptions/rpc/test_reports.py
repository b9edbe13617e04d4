"""Reports: an account's figures and an operator's overview, exact to the nano, of today and this month (UTC)."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from subscriptions_peers import USD
from subscriptions_usage import SummingLedger
from tollkeeper.subscriptions.v1 import billing_service_pb2 as billing_pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from services.kit.identity import Role

# The clock stands in the middle of a day and of a month, so that "today", "earlier this month" and "before" all exist.
NOON = (datetime.now(UTC) + timedelta(days=32)).replace(day=15, hour=12, minute=0, second=0, microsecond=0)
TODAY, MONTH = NOON.replace(hour=0), NOON.replace(day=1, hour=0)
EARLIER, BEFORE = NOON - timedelta(days=3), NOON - timedelta(days=20)
LATER, TICK = NOON + timedelta(hours=1), timedelta(microseconds=1)


@pytest.fixture
def ledger():
    with SummingLedger().serve() as peer:
        yield peer


@pytest.fixture(autouse=True)
def noon(clock):
    clock.forward(NOON - datetime.now(UTC))


def create(operator, database, account_id, plan="free", *, at=BEFORE):
    operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id=account_id, plan=plan))
    database.rows("UPDATE accounts SET created_at = :at WHERE account_id = :id", at=at, id=account_id)


def move(operator, database, account_id, plan, *, at, number=1):
    request_id = f"move-{number}"
    request = pb.SetAccountPlanRequest(account_id=account_id, plan=plan, request_id=request_id)
    operator(operator.customers.SetAccountPlan, request)
    database.rows(
        "UPDATE plan_changes SET created_at = :at WHERE account_id = :id AND request_id = :request_id",
        at=at, id=account_id, request_id=request_id,
    )  # fmt: skip


def pay(database, account_id, nanos, at, **returned_cents):
    database.rows(
        "INSERT INTO stripe_payments (source_id, account_id, kind, amount_nanos, credit_nanos, returned, paid_at)"
        " VALUES (gen_random_uuid()::text, :id, 'invoice', :nanos, 0, CAST(:returned AS jsonb), :at)",
        id=account_id, nanos=nanos, returned=json.dumps(returned_cents), at=at,
    )  # fmt: skip


def overview(operator):
    return operator(operator.reports.GetOverviewReport, pb.GetOverviewReportRequest())


def stats(caller, account_id=""):
    return caller(caller.billing.GetBillingStats, billing_pb.GetBillingStatsRequest(account_id=account_id))


def period(requests=0, tokens=0, cost_nanos=0, billed_nanos=0):
    return billing_pb.PeriodStats(requests=requests, tokens=tokens, cost_nanos=cost_nanos, billed_nanos=billed_nanos)


# An account's figures


def test_stats_are_those_of_today_this_month_and_the_cycle_to_the_nano(operator, connect, database, ledger):
    create(operator, database, "acme")
    create(operator, database, "beta")
    ledger.books["acme"]["cycle_start"] = NOON - timedelta(days=10)
    for number, moment in enumerate(
        (MONTH - TICK, MONTH, ledger.books["acme"]["cycle_start"], TODAY - TICK, TODAY, NOON - TICK, LATER)
    ):
        digit = 10**number
        ledger.book_call("acme", moment, total_tokens=digit, cost_nanos=3 * digit, billed_nanos=5 * digit)
    ledger.book_call("beta", TODAY, total_tokens=9, cost_nanos=9, billed_nanos=9)
    customer = connect(operator.address, Role.ACCOUNT, "acme")
    assert stats(customer) == billing_pb.BillingStats(
        account_id="acme",
        today=period(2, 110_000, 330_000, 550_000),
        month=period(5, 111_110, 333_330, 555_550),
        cycle=period(4, 111_100, 333_300, 555_500),
    )


def test_stats_of_an_account_without_use_are_zero(operator, database):
    create(operator, database, "acme")
    found = stats(operator, "acme")
    assert (found.today, found.month, found.cycle) == (period(), period(), period())


def test_stats_are_the_accounts_own(operator, connect, database):
    create(operator, database, "acme")
    create(operator, database, "beta")
    customer = connect(operator.address, Role.ACCOUNT, "acme")
    request = billing_pb.GetBillingStatsRequest(account_id="beta")
    assert customer.refused(customer.billing.GetBillingStats, request).reason == "ACCOUNT_MISMATCH"
    request = billing_pb.GetBillingStatsRequest(account_id="nobody")
    assert operator.refused(operator.billing.GetBillingStats, request).reason == "ACCOUNT_NOT_FOUND"


def test_account_that_the_ledger_does_not_know_yet_is_not_provisioned(operator, database, ledger):
    create(operator, database, "acme")
    del ledger.books["acme"]
    request = billing_pb.GetBillingStatsRequest(account_id="acme")
    assert operator.refused(operator.billing.GetBillingStats, request).reason == "ACCOUNT_NOT_PROVISIONED"
    request = pb.GetAccountStatsRequest(account_id="acme")
    assert operator.refused(operator.customers.GetAccountStats, request).reason == "ACCOUNT_NOT_PROVISIONED"


def test_account_stats_hold_account_balance_and_use(operator, database, ledger):
    create(operator, database, "acme")
    ledger.books["acme"].update(cycle_spent=1_234_567_891, held=100, cycle_start=MONTH)
    ledger.book_call("acme", TODAY, total_tokens=7, cost_nanos=8, billed_nanos=9)
    found = operator(operator.customers.GetAccountStats, pb.GetAccountStatsRequest(account_id="acme"))
    assert (found.account.account_id, found.account.plan) == ("acme", "free")
    assert (found.available_nanos, found.spent_nanos) == (5 * USD - 1_234_567_891 - 100, 1_234_567_891)
    assert found.stats == stats(operator, "acme")
    assert found.stats.today == period(1, 7, 8, 9)


def test_account_stats_are_for_operators(operator, connect, database):
    create(operator, database, "acme")
    customer = connect(operator.address, Role.ACCOUNT, "acme")
    request = pb.GetAccountStatsRequest(account_id="acme")
    assert customer.refused(customer.customers.GetAccountStats, request).reason == "ROLE_TOO_LOW"
    refusal = operator.refused(operator.customers.GetAccountStats, pb.GetAccountStatsRequest())
    assert [violation.field for violation in refusal.violations] == ["account_id"]
    request = pb.GetAccountStatsRequest(account_id="nobody")
    assert operator.refused(operator.customers.GetAccountStats, request).reason == "ACCOUNT_NOT_FOUND"


# The overview


def test_overview_of_nothing_is_zero(operator):
    assert overview(operator) == pb.OverviewReport(today=pb.OverviewPeriod(), month=pb.OverviewPeriod())


def test_signups_are_the_accounts_created_in_the_period(operator, database):
    for number, at in enumerate((MONTH - TICK, MONTH, TODAY - TICK, TODAY, NOON - TICK)):
        create(operator, database, f"a{number}", at=at)
    found = overview(operator)
    assert (found.today.signups, found.month.signups) == (2, 4)


def test_tier_changes_are_moves_to_another_plan(operator, database, pricing):
    create(operator, database, "acme")
    move(operator, database, "acme", "starter", at=MONTH - TICK, number=1)
    move(operator, database, "acme", "payg", at=MONTH, number=2)
    move(operator, database, "acme", "starter", at=TODAY, number=3)
    pricing.publish("starter", price_nanos=29 * USD)
    move(operator, database, "acme", "starter", at=TODAY, number=4)
    found = overview(operator)
    assert (found.today.tier_changes, found.month.tier_changes) == (1, 2)


def test_revenue_is_what_was_paid_less_what_was_returned_of_it(operator, database):
    for account_id in ("acme", "beta", "gone"):
        create(operator, database, account_id)
    pay(database, "acme", 99 * USD, MONTH - TICK)
    pay(database, "acme", 19 * USD, MONTH)
    pay(database, "beta", 9_990_000_001, EARLIER, ch_1=250, ch_2=1)
    pay(database, "gone", 10 * USD, EARLIER, ch_3=1000)
    pay(database, "beta", 5 * USD, TODAY)
    pay(database, "beta", 5 * USD, LATER)
    found = overview(operator)
    assert (found.today.revenue_nanos, found.today.arpu_nanos) == (5 * USD, 5 * USD)
    month = 19 * USD + 9_990_000_001 - 2_510_000_000 + 5 * USD
    assert found.month.revenue_nanos == month == 31_480_000_001
    assert found.month.arpu_nanos == 15_740_000_000, "of two, and the half nano goes to the even one"


def test_no_more_is_returned_of_a_payment_than_was_paid(operator, database):
    """A charge that was refunded and is disputed besides takes nothing from the others."""
    create(operator, database, "acme")
    pay(database, "acme", 10 * USD, TODAY, ch_1=1000, ch_2=1000)
    pay(database, "acme", USD, TODAY)
    assert overview(operator).today.revenue_nanos == USD


def test_usage_cost_and_profit_are_those_of_the_ledger_by_provider_and_model(operator, database, ledger):
    create(operator, database, "acme")
    calls = [
        ("acme", "openai", "gpt-4o", TODAY, 100, 1_000_000_001, 1_500_000_002),
        ("beta", "openai", "gpt-4o", NOON - TICK, 10, 2, 3),
        ("beta", "anthropic", "claude-3-haiku", EARLIER, 7, 3_000_000_000, 0),
        ("acme", "openai", "gpt-4o", EARLIER, 1, 5, 5),
        ("acme", "openai", "gpt-4o", MONTH - TICK, 1, 10**15, 5),
    ]
    for account_id, provider, model, moment, tokens, cost, billed in calls:
        sums = {"total_tokens": tokens, "cost_nanos": cost, "billed_nanos": billed}
        ledger.book_call(account_id, moment, provider=provider, model=model, **sums)
    pay(database, "acme", 5 * USD, EARLIER)
    found = overview(operator)
    assert list(found.today.models) == [
        pb.ModelUse(provider="openai", model="gpt-4o", requests=2, tokens=110, cost_nanos=1_000_000_003)
    ]
    assert (found.today.requests, found.today.tokens, found.today.api_cost_nanos) == (2, 110, 1_000_000_003)
    assert (found.today.profit_nanos, found.today.margin_basis_points) == (-1_000_000_003, 0)
    assert list(found.month.models) == [
        pb.ModelUse(provider="anthropic", model="claude-3-haiku", requests=1, tokens=7, cost_nanos=3_000_000_000),
        pb.ModelUse(provider="openai", model="gpt-4o", requests=3, tokens=111, cost_nanos=1_000_000_008),
    ]
    assert (found.month.requests, found.month.tokens, found.month.api_cost_nanos) == (4, 118, 4_000_000_008)
    assert (found.month.profit_nanos, found.month.margin_basis_points) == (999_999_992, 2000)


def test_churn_is_the_share_of_subscribers_at_the_start_that_are_none_now(operator, database):
    for account_id in ("stays", "leaves", "left-today", "went-and-came-back", "closes", "joins", "left-before"):
        create(operator, database, account_id)
    for account_id in ("stays", "leaves", "left-today", "went-and-came-back", "closes", "left-before"):
        move(operator, database, account_id, "starter", at=BEFORE)
    create(operator, database, "new", "starter", at=EARLIER)
    move(operator, database, "left-before", "free", at=MONTH - TICK, number=2)
    move(operator, database, "leaves", "payg", at=EARLIER, number=2)
    move(operator, database, "left-today", "free", at=TODAY, number=2)
    move(operator, database, "went-and-came-back", "free", at=EARLIER, number=2)
    move(operator, database, "went-and-came-back", "starter", at=NOON - TICK, number=3)
    move(operator, database, "joins", "starter", at=EARLIER, number=2)
    database.rows("UPDATE accounts SET status = 'closed' WHERE account_id = 'closes'")
    found = overview(operator)
    # When the month began: stays, leaves, left-today, went-and-came-back, closes. Lost: leaves, left-today, closes.
    assert found.month.churn_basis_points == 6000
    # When the day began: stays, left-today, closes, joins, new. Lost: left-today, closes.
    assert found.today.churn_basis_points == 4000
    assert dict(found.plan_mix) == {"free": 2, "payg": 1, "starter": 4}


def test_plan_version_that_an_account_was_on_says_whether_it_paid(operator, database, pricing):
    """A plan that was free when the account was on it, and is sold now."""
    pricing.publish("trial")
    create(operator, database, "acme", "trial")
    pricing.publish("trial", price_nanos=USD)
    move(operator, database, "acme", "free", at=EARLIER)
    assert overview(operator).month.churn_basis_points == 0


def test_day_that_begins_the_month_is_both(operator, database, ledger, clock):
    create(operator, database, "acme", at=MONTH + timedelta(minutes=1))
    ledger.book_call("acme", MONTH + timedelta(hours=1), provider="openai", model="gpt-4o", cost_nanos=5)
    pay(database, "acme", USD, MONTH)
    clock.forward(MONTH + timedelta(hours=2) - clock())
    found = overview(operator)
    assert found.today == found.month
    assert (found.today.signups, found.today.api_cost_nanos, found.today.revenue_nanos) == (1, 5, USD)


def test_overview_is_for_operators(operator, connect, database):
    create(operator, database, "acme")
    customer = connect(operator.address, Role.ACCOUNT, "acme")
    request = pb.GetOverviewReportRequest()
    assert customer.refused(customer.reports.GetOverviewReport, request).reason == "ROLE_TOO_LOW"
    nobody = connect(operator.address, Role.PUBLIC)
    assert nobody.refused(nobody.reports.GetOverviewReport, request).reason == "CREDENTIAL_MISSING"


def test_overview_without_the_ledger_is_refused_and_not_half_true(operator, ledger):
    ledger.down = True
    refusal = operator.refused(operator.reports.GetOverviewReport, pb.GetOverviewReportRequest())
    assert refusal.code.name == "UNAVAILABLE"
