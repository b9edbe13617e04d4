"""One account's month: what it began and ended with, what moved it, what was used."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from tests.ledger.support.ledger_client import refused, violations
from tests.ledger.support.ledger_clock import Clock


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch, datetime(2026, 3, 20, 12, tzinfo=UTC))


async def month(ledger, name):
    return await ledger.GetMonthlySummary(pb.GetMonthlySummaryRequest(account_id="acme", month=name))


async def spend(ledger, nanos, hold_id, provider, tokens=1):
    await ledger.hold(nanos, hold_id)
    usage = resources.UsageReport(provider=provider, model="m", input_tokens=tokens, cost_nanos=nanos)
    return (await ledger.settle(nanos, hold_id, usage=usage)).transaction.transaction_id


async def lived(ledger, clock):
    """March to May: credit, spending, a promotion, a refund."""
    await ledger.open(credit=1_000)
    await spend(ledger, 100, "h1", "openai")
    clock.now = datetime(2026, 4, 1, tzinfo=UTC)
    await ledger.credit(50, source="promotion", priority=1, expires_at=clock.stamp(days=30))
    april = await spend(ledger, 30, "h2", "google", tokens=7)
    clock.wait(days=3)
    await spend(ledger, 200, "h3", "openai")
    clock.now = datetime(2026, 5, 2, tzinfo=UTC)
    await ledger.RefundTransaction(
        pb.RefundTransactionRequest(account_id="acme", transaction_id=april, amount_nanos=10, request_id="r")
    )


async def test_month_adds_up_and_begins_with_what_the_one_before_ended_with(ledger, clock):
    await lived(ledger, clock)
    march, april, may = [await month(ledger, f"2026-0{number}") for number in (3, 4, 5)]
    assert [(x.opening_nanos, x.closing_nanos) for x in (march, april, may)] == [(0, 900), (900, 720), (720, 730)]
    assert dict(march.amount_nanos_by_type) == {"credit_purchase": 1_000, "usage_deduction": -100}
    assert dict(april.amount_nanos_by_type) == {"promotion": 50, "usage_deduction": -230}
    assert dict(may.amount_nanos_by_type) == {"refund": 10}
    for summary in (march, april, may):
        assert summary.opening_nanos + sum(summary.amount_nanos_by_type.values()) == summary.closing_nanos
    assert may.closing_nanos == (await ledger.balance()).available_nanos


async def test_expiry_counts_in_the_month_in_which_it_was_due(ledger, clock):
    await ledger.open()
    await ledger.credit(50, expires_at=clock.stamp(days=1))
    clock.wait(days=90)
    march, april = await month(ledger, "2026-03"), await month(ledger, "2026-04")
    assert dict(march.amount_nanos_by_type) == {"credit_purchase": 50, "expiry": -50}
    assert (march.closing_nanos, april.opening_nanos, dict(april.amount_nanos_by_type)) == (0, 0, {})


async def test_months_usage_is_summed_by_provider_and_in_all(ledger, clock):
    await lived(ledger, clock)
    april = await month(ledger, "2026-04")
    assert [(x.provider, x.requests, x.billed_nanos, x.input_tokens) for x in april.providers] == [
        ("google", 1, 30, 7),
        ("openai", 1, 200, 1),
    ]
    assert (april.total.requests, april.total.cost_nanos, april.total.total_tokens) == (2, 230, 8)
    assert (april.account_id, april.month) == ("acme", "2026-04")


async def test_what_is_held_over_the_months_end_is_not_available_at_it(ledger, clock):
    clock.now = datetime(2026, 3, 31, 23, 59, tzinfo=UTC)
    await ledger.open(credit=100)
    await ledger.hold(40, "h1")
    clock.wait(minutes=2)
    await ledger.settle(10, "h1")
    march, april = await month(ledger, "2026-03"), await month(ledger, "2026-04")
    assert (march.closing_nanos, april.opening_nanos, april.closing_nanos) == (60, 60, 90)
    assert dict(april.amount_nanos_by_type) == {"usage_deduction": -10}


async def test_month_before_the_account_was_opened_is_empty(ledger, clock):
    await lived(ledger, clock)
    earlier = await month(ledger, "2025-01")
    assert (earlier.opening_nanos, earlier.closing_nanos, earlier.total.requests) == (0, 0, 0)
    assert not earlier.amount_nanos_by_type
    assert not earlier.providers


async def test_month_that_is_not_known_is_refused(ledger, clock, ledger_settings):
    await lived(ledger, clock)
    for name in ("2026-06", "2026-13"):
        assert violations(await refused(month(ledger, name))) == {"month"}
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute(
            "INSERT INTO checkpoints SELECT account_id, 1, '', 0, 0, 0, 0, 0, '[]', 0, %s FROM accounts",
            (datetime(2026, 4, 1, tzinfo=UTC),),
        )
    refusal = await refused(month(ledger, "2026-03"))
    assert (violations(refusal), "archived" in refusal.message) == ({"month"}, True)
    assert (await month(ledger, "2026-04")).closing_nanos == 720


async def test_month_under_way_ends_with_what_there_is_now(ledger, clock):
    await ledger.open(credit=100)
    clock.wait(seconds=1)
    await ledger.credit(5)
    assert (await month(ledger, "2026-03")).closing_nanos == 105
    clock.now -= timedelta(seconds=1)
    assert (await month(ledger, "2026-03")).closing_nanos == 105
