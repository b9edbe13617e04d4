"""Owns the proof that the margin report adds up, to the nano, what the ledger and subscriptions tell."""

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pricing_peers import PAGE, Ledger, Subscriptions, served
from tollkeeper.ledger.v1.resources_pb2 import Transaction, UsageRecord
from tollkeeper.pricing.v1 import plan_service_pb2 as pb
from tollkeeper.subscriptions.v1.resources_pb2 import CustomerAccount

USD = 1_000_000_000


def day(text):
    made = Timestamp()
    made.FromJsonString(f"2026-{text}T12:00:00Z")
    return made


def customer(name, plan, version=1, *, since="06-10", cycle="11-10", status="active"):
    return CustomerAccount(
        account_id=name,
        plan=plan,
        plan_version=version,
        status=status,
        created_at=day(since),
        cycle_start=day(cycle),
    )


def credit(kind, nanos, when="11-10", undone=0):
    return Transaction(type=kind, amount_nanos=nanos, refunded_nanos=undone, created_at=day(when))


def usage(cost_nanos, when="11-15"):
    return UsageRecord(cost_nanos=cost_nanos, created_at=day(when))


GRANT = credit("subscription_grant", 19_800_000_000)


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
def subscriptions():
    return Subscriptions()


@pytest.fixture
def server(serve, settings, ledger, subscriptions):
    def told(address):
        return settings.model_copy(update={"ledger_addr": address, "subscriptions_addr": address})

    with served(ledger, subscriptions) as address, serve(told(address)) as server:
        yield server


@pytest.fixture
def report(server, client):
    def ask(month="2026-11"):
        return client(server, "ADMIN").plans.GetMarginReport(pb.GetMarginReportRequest(month=month))

    return ask


def test_a_month_by_plan_and_in_all(report, ledger, subscriptions):
    subscriptions.customers = [
        customer("a", "professional"),
        customer("b", "professional"),
        customer("c", "free"),
        customer("d", "payg"),
        customer("e", "metered-standard"),
    ]
    ledger.transactions = {
        "a": [GRANT],
        "b": [GRANT, credit("credit_purchase", 10 * USD)],
        "c": [credit("promotion", 5 * USD)],
        "d": [credit("credit_purchase", 20 * USD)] * 3,
    }
    ledger.records = {
        "a": [usage(4 * USD), usage(6 * USD), usage(100 * USD, "10-31"), usage(100 * USD, "12-01")],
        "c": [usage(USD)],
        "d": [usage(30 * USD)],
        "e": [usage(7)],
    }
    found = report()
    assert found.month == "2026-11"
    assert [line.plan_id for line in found.plans] == ["free", "metered-standard", "payg", "professional"]
    free, metered, payg, professional = found.plans
    # $99 leaves $95.829 after Stripe's fee; $10 leaves $9.41.
    assert professional == pb.MarginLine(
        plan_id="professional",
        customers=2,
        revenue_nanos=208 * USD,
        api_cost_nanos=10 * USD,
        stripe_fee_nanos=2 * 3_171_000_000 + 590_000_000,
        profit_nanos=2 * 95_829_000_000 + 9_410_000_000 - 10 * USD,
        margin_basis_points=9186,  # 191.068 ÷ 208 = 91.859… %
    )
    assert (free.revenue_nanos, free.stripe_fee_nanos, free.profit_nanos, free.margin_basis_points) == (0, 0, -USD, 0)
    assert (payg.revenue_nanos, payg.stripe_fee_nanos) == (60 * USD, 3 * 880_000_000)
    assert (metered.revenue_nanos, metered.profit_nanos) == (99 * USD, 95_829_000_000 - 7)
    for name in ("customers", "revenue_nanos", "api_cost_nanos", "stripe_fee_nanos", "profit_nanos"):
        assert getattr(found.total, name) == sum(getattr(line, name) for line in found.plans)
    assert found.total.plan_id == ""


def test_plan_is_priced_by_the_version_that_the_customer_is_on(report, server, client, ledger, subscriptions):
    change = pb.UpdatePlanRequest(request_id="u1")
    change.plan.plan_id, change.plan.price_nanos = "professional", 119 * USD
    client(server, "ADMIN").plans.UpdatePlan(change)
    subscriptions.customers = [customer("a", "professional", 1), customer("b", "professional", 2)]
    ledger.transactions = {"a": [GRANT], "b": [GRANT]}
    assert report().total.revenue_nanos == 218 * USD


def test_what_was_given_back_is_no_revenue_and_its_fee_is_still_paid(report, ledger, subscriptions):
    subscriptions.customers = [customer("a", "professional"), customer("d", "payg")]
    ledger.transactions = {
        "a": [credit("subscription_grant", 19_800_000_000, undone=9_900_000_000)],
        "d": [credit("credit_purchase", 20 * USD, undone=20 * USD)],
    }
    total = report().total
    assert (total.revenue_nanos, total.stripe_fee_nanos) == (49_500_000_000, 3_171_000_000 + 880_000_000)


@pytest.mark.parametrize(
    ("on_the_plan", "month", "paid"),
    [
        ({"since": "06-10", "cycle": "11-10"}, "2026-11", 99),
        ({"since": "06-10", "cycle": "11-10"}, "2026-10", 99),
        ({"since": "06-10", "cycle": "10-25"}, "2026-11", 0),  # November's cycle has not begun
        ({"since": "11-05", "cycle": "11-05"}, "2026-10", 0),
        ({"since": "11-05", "cycle": "11-05"}, "2026-11", 99),
        ({"since": "06-10", "cycle": "11-10", "status": "closed"}, "2026-11", 0),
    ],
)
def test_metered_plan_is_paid_for_each_cycle_that_began(report, subscriptions, on_the_plan, month, paid):
    subscriptions.customers = [customer("e", "metered-standard", **on_the_plan)]
    assert report(month).total.revenue_nanos == paid * USD


def test_month_without_customers_is_empty(report):
    found = report("2026-01")
    assert (len(found.plans), found.total) == (0, pb.MarginLine())


def test_loss_of_any_size_fits(report, ledger, subscriptions):
    subscriptions.customers = [customer("d", "payg")]
    ledger.transactions = {"d": [credit("credit_purchase", 1)]}
    ledger.records = {"d": [usage(10**18)]}
    assert report().total.margin_basis_points == -(2**31)


def test_report_needs_both_services(serve, settings, client, refused):
    for told, reason in (
        ({}, "LEDGER_NOT_CONFIGURED"),
        ({"subscriptions_addr": "127.0.0.1:1"}, "LEDGER_NOT_CONFIGURED"),
        ({"ledger_addr": "127.0.0.1:1"}, "SUBSCRIPTIONS_NOT_CONFIGURED"),
    ):
        with serve(settings.model_copy(update=told)) as server:
            error = refused(client(server, "ADMIN").plans.GetMarginReport, pb.GetMarginReportRequest())
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)


@pytest.mark.parametrize("month", ["2026-13", "november", "2026-1"])
def test_bad_month_is_refused(server, client, refused, month):
    error = refused(client(server, "ADMIN").plans.GetMarginReport, pb.GetMarginReportRequest(month=month))
    assert [violation.field for violation in error.violations] == ["month"]


def test_ledger_is_asked_about_a_page_of_customers_at_once(report, ledger, subscriptions):
    subscriptions.customers = [customer(str(number), "payg") for number in range(20)]
    ledger.transactions = {"7": [credit("credit_purchase", 20 * USD)]}
    total = report().total
    assert (total.customers, total.revenue_nanos) == (20, 20 * USD)
    assert ledger.sums == 20 / PAGE


def test_deadline_ends_it(server, client, ledger, subscriptions, refused):
    subscriptions.customers = [customer(str(number), "payg") for number in range(20)]
    ledger.records = {str(number): [] for number in range(20)}
    ledger.block.clear()
    error = refused(client(server, "ADMIN").plans.GetMarginReport, pb.GetMarginReportRequest(), timeout=0.3)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    ledger.block.set()
    assert client(server, "ADMIN").plans.GetMarginReport(pb.GetMarginReportRequest()).total.customers == 20


def test_only_operators_see_margins(server, client, refused):
    error = refused(client(server, "ACCOUNT", "acme").plans.GetMarginReport, pb.GetMarginReportRequest())
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
