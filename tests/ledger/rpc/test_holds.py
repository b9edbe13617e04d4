"""Holds: set aside at once, settled exactly once, given back whole."""

import asyncio

import grpc
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from tests.ledger.support.ledger_client import refused


async def test_settling_less_than_held_gives_the_rest_back(ledger):
    await ledger.open(credit=1_000)
    made = await ledger.hold(600, "h1")
    assert (made.hold.amount_nanos, made.available_nanos) == (600, 400)
    settled = await ledger.settle(250, "h1")
    assert (settled.available_nanos, settled.transaction.amount_nanos, settled.hold.status) == (750, -250, "settled")
    balance = await ledger.balance()
    assert (balance.available_nanos, balance.held_nanos, balance.spent_nanos) == (750, 0, 250)
    assert [(g.remaining_nanos, g.reserved_nanos) for g in balance.grants] == [(750, 0)]


async def test_settling_more_than_held_is_owed_and_paid_by_the_next_credit(ledger):
    await ledger.open(credit=100)
    await ledger.hold(100, "h1")
    settled = await ledger.settle(140, "h1")
    assert settled.available_nanos == -40
    assert (await ledger.balance()).overdrawn_nanos == 40
    assert (await refused(ledger.hold(1, "h2"))).reason == "INSUFFICIENT_CREDIT"
    await ledger.credit(100)
    balance = await ledger.balance()
    assert (balance.available_nanos, balance.overdrawn_nanos) == (60, 0)
    assert [g.remaining_nanos for g in balance.grants] == [60]


async def test_hold_refused_when_balance_does_not_cover_it(ledger):
    await ledger.open(credit=100)
    refusal = await refused(ledger.hold(101, "h1"))
    assert (refusal.reason, refusal.kind.http_status) == ("INSUFFICIENT_CREDIT", 402)
    assert (await ledger.balance()).held_nanos == 0
    assert (await ledger.hold(100, "h1")).available_nanos == 0  # the refused key may be used again


async def test_hold_takes_what_can_be_paid_down_to_its_minimum(ledger):
    await ledger.open(credit=100)
    made = await ledger.hold(500, "h1", minimum_amount_nanos=30)
    assert (made.hold.amount_nanos, made.available_nanos) == (100, 0)
    assert (await refused(ledger.hold(500, "h2", minimum_amount_nanos=1))).reason == "INSUFFICIENT_CREDIT"


async def test_replayed_hold_and_settlement_post_once(ledger):
    await ledger.open(credit=1_000)
    first = await ledger.hold(100, "h1")
    assert await ledger.hold(100, "h1") == first
    settled = await ledger.settle(70, "h1", usage=resources.UsageReport(provider="openai", input_tokens=5))
    again = await ledger.settle(70, "h1", usage=resources.UsageReport(provider="openai", input_tokens=5))
    assert again.transaction == settled.transaction
    assert again.usage_id == settled.usage_id
    assert (await ledger.hold(100, "h1")).hold == first.hold
    assert (await ledger.balance()).spent_nanos == 70
    listed = await ledger.ListUsage(pb.ListUsageRequest(account_id="acme"))
    assert len(listed.records) == 1


async def test_same_hold_id_with_another_body_is_refused(ledger):
    await ledger.open(credit=1_000)
    await ledger.hold(100, "h1")
    assert (await refused(ledger.hold(101, "h1"))).reason == "IDEMPOTENCY_CONFLICT"
    await ledger.settle(70, "h1")
    refusal = await refused(ledger.settle(71, "h1"))
    assert (refusal.reason, refusal.code) == ("IDEMPOTENCY_CONFLICT", grpc.StatusCode.ALREADY_EXISTS)
    assert (await refused(ledger.release("h1"))).reason == "HOLD_ENDED"


async def test_released_hold_cannot_be_settled(ledger):
    await ledger.open(credit=1_000)
    await ledger.hold(100, "h1")
    await ledger.release("h1")
    assert (await ledger.release("h1")).status == "released"
    assert (await refused(ledger.settle(1, "h1"))).reason == "HOLD_ENDED"
    assert (await ledger.balance()).available_nanos == 1_000


async def test_expired_hold_comes_back_by_itself_and_settles_all_the_same(ledger):
    await ledger.open(credit=1_000)
    await ledger.hold(600, "h1", ttl_seconds=1, tokens=50)
    assert (await ledger.balance()).held_nanos == 600
    await asyncio.sleep(1.1)
    balance = await ledger.balance()  # no worker runs: looking is enough
    assert (balance.available_nanos, balance.held_nanos) == (1_000, 0)
    moves = await ledger.ListTransactions(pb.ListTransactionsRequest(account_id="acme", type="hold_expired"))
    assert [m.hold_id for m in moves.transactions] == ["h1"]
    settled = await ledger.settle(500, "h1")
    assert (settled.was_expired, settled.available_nanos) == (True, 500)
    assert (await ledger.GetHold(pb.GetHoldRequest(account_id="acme", hold_id="h1"))).status == "settled"


async def test_suspended_account_takes_no_hold_but_settles_what_is_under_way(ledger):
    await ledger.open(credit=1_000)
    await ledger.hold(100, "h1")
    await ledger.SuspendAccount(pb.SuspendAccountRequest(account_id="acme", request_id="s1"))
    refusal = await refused(ledger.hold(1, "h2"))
    assert (refusal.reason, refusal.kind.http_status) == ("ACCOUNT_SUSPENDED", 403)
    assert (await ledger.settle(60, "h1")).available_nanos == 940
    await ledger.ResumeAccount(pb.ResumeAccountRequest(account_id="acme", request_id="s2"))
    await ledger.hold(1, "h2")


async def test_unbillable_hold_needs_no_balance_and_is_recorded(ledger):
    await ledger.open()
    await ledger.hold(0, "h1", billable=False, tokens=100)
    usage = resources.UsageReport(provider="openai", model="gpt-4o", input_tokens=7, cost_nanos=99)
    settled = await ledger.settle(0, "h1", tokens=7, usage=usage)
    assert not settled.HasField("transaction")
    (record,) = (await ledger.ListUsage(pb.ListUsageRequest(account_id="acme"))).records
    assert (record.billable, record.billed_nanos, record.cost_nanos) == (False, 0, 99)
    assert record.usage_id == settled.usage_id


async def test_fifty_of_two_hundred_concurrent_holds_are_paid_for(ledger):
    await ledger.open(credit=50)
    answers = await asyncio.gather(*(ledger.hold(1, f"h{n}") for n in range(200)), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 50
    balance = await ledger.balance()
    assert (balance.available_nanos, balance.held_nanos) == (0, 50)
