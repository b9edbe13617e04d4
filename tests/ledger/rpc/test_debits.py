"""Debits and adjustments: money that moves at once, checked and counted as a hold is."""

import asyncio

from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from tests.ledger.support.ledger_audit import audit
from tests.ledger.support.ledger_client import refused, violations


async def debit(ledger, nanos, request_id, **words):
    return await ledger.DebitAccount(
        pb.DebitAccountRequest(account_id="acme", amount_nanos=nanos, request_id=request_id, **words)
    )


async def adjust(ledger, nanos, direction, request_id):
    return await ledger.AdjustBalance(
        pb.AdjustBalanceRequest(account_id="acme", amount_nanos=nanos, direction=direction, request_id=request_id)
    )


async def test_debit_spends_counts_and_is_recorded(ledger, ledger_settings):
    await ledger.open(credit=100)
    for unit in ("nanos", "tokens", "requests"):
        await ledger.SetLimit(pb.SetLimitRequest(account_id="acme", unit=unit, window="day", amount=60))
    report = resources.UsageReport(provider="openai", model="gpt-4o", input_tokens=7)
    charged = (await debit(ledger, 50, "d1", tokens=7, requests=1, key_id="k1", usage=report)).transaction
    assert (charged.type, charged.amount_nanos, charged.balance_after_nanos) == ("usage_deduction", -50, 50)
    (record,) = await ledger.usage()
    assert (record.usage_id, record.transaction_id) == (charged.usage_id, charged.transaction_id)
    assert (record.billed_nanos, record.hold_id, record.key_id, record.model) == (50, "", "k1", "gpt-4o")
    assert [limit.used for limit in (await ledger.limits()).values()] == [50, 1, 7]
    refusal = await refused(debit(ledger, 11, "d2"))
    assert (refusal.reason, refusal.metadata["limitId"]) == ("LIMIT_EXCEEDED", "account::nanos:day")
    audit(ledger_settings.database_url)


async def test_repeated_debit_spends_once(ledger):
    await ledger.open(credit=100)
    first, *others = await asyncio.gather(*(debit(ledger, 30, "d1") for _ in range(6)))
    assert all(other.transaction == first.transaction for other in others)
    assert (await ledger.balance()).available_nanos == 70
    assert (await refused(debit(ledger, 31, "d1"))).reason == "IDEMPOTENCY_CONFLICT"
    assert len(await ledger.usage()) == 1


async def test_debit_is_refused_as_a_hold_is(ledger):
    await ledger.open(credit=100)
    assert (await refused(debit(ledger, 101, "d1"))).reason == "INSUFFICIENT_CREDIT"
    await ledger.SuspendAccount(pb.SuspendAccountRequest(account_id="acme", request_id="s"))
    assert (await refused(debit(ledger, 1, "d1"))).reason == "ACCOUNT_SUSPENDED"
    assert violations(await refused(debit(ledger, -1, ""))) == {"amount_nanos", "request_id"}


async def test_adjustment_gives_or_takes_and_may_overdraw(ledger, ledger_settings):
    await ledger.open(credit=100)
    up = await adjust(ledger, 20, "credit", "a1")
    assert (up.type, up.amount_nanos) == ("credit_adjustment", 20)
    down = await adjust(ledger, 150, "debit", "a2")
    assert (down.type, down.amount_nanos, down.balance_after_nanos) == ("credit_adjustment", -150, -30)
    assert await adjust(ledger, 150, "debit", "a2") == down
    balance = await ledger.balance()
    assert (balance.funded_nanos, balance.overdrawn_nanos, balance.spent_nanos) == (-30, 30, 0)
    assert violations(await refused(adjust(ledger, 5, "sideways", "a3"))) == {"direction"}
    audit(ledger_settings.database_url)
