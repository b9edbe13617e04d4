"""Every write: the same key and body gives the first result, once done; another body is refused."""

import asyncio
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from tests.ledger.support.ledger_client import refused

ANCHOR = Timestamp()
ANCHOR.FromDatetime(datetime(2026, 1, 31, tzinfo=UTC))

# RPC, a request, the same key with another body, the refusal of that.
WRITES = [
    (
        "OpenAccount",
        pb.OpenAccountRequest(account_id="new", display_name="New"),
        pb.OpenAccountRequest(account_id="new", display_name="Other"),
        "ACCOUNT_EXISTS",
    ),
    (
        "OpenAccount",
        pb.OpenAccountRequest(account_id="new", cycle_anchor=ANCHOR),
        pb.OpenAccountRequest(account_id="new"),
        "ACCOUNT_EXISTS",
    ),
    (
        "CreditAccount",
        pb.CreditAccountRequest(account_id="acme", amount_nanos=5, request_id="r1"),
        pb.CreditAccountRequest(account_id="acme", amount_nanos=5, request_id="r1", description="other"),
        "IDEMPOTENCY_CONFLICT",
    ),
    (
        "SuspendAccount",
        pb.SuspendAccountRequest(account_id="acme", reason="late", request_id="r1"),
        pb.SuspendAccountRequest(account_id="acme", reason="later", request_id="r1"),
        "IDEMPOTENCY_CONFLICT",
    ),
    (
        "ResumeAccount",
        pb.ResumeAccountRequest(account_id="acme", request_id="r1"),
        None,
        "",
    ),
    (
        "CreateHold",
        pb.CreateHoldRequest(account_id="acme", hold_id="h1", amount_nanos=5),
        pb.CreateHoldRequest(account_id="acme", hold_id="h1", amount_nanos=5, ttl_seconds=9),
        "IDEMPOTENCY_CONFLICT",
    ),
    (
        "SettleHold",
        pb.SettleHoldRequest(account_id="acme", hold_id="open", amount_nanos=5),
        pb.SettleHoldRequest(
            account_id="acme", hold_id="open", amount_nanos=5, usage=resources.UsageReport(model="gpt-4o")
        ),
        "IDEMPOTENCY_CONFLICT",
    ),
    ("ReleaseHold", pb.ReleaseHoldRequest(account_id="acme", hold_id="open"), None, ""),
    (
        "SetLimit",
        pb.SetLimitRequest(account_id="acme", window="day", amount=50, request_id="r1"),
        pb.SetLimitRequest(account_id="acme", window="day", amount=60, request_id="r1"),
        "IDEMPOTENCY_CONFLICT",
    ),
    ("DeleteLimit", pb.DeleteLimitRequest(account_id="acme", limit_id="account::nanos:month"), None, ""),
]


@pytest.mark.parametrize(("name", "request_", "other", "reason"), WRITES, ids=lambda value: str(value)[:20].strip())
async def test_replayed_request_is_done_once_and_another_body_refused(ledger, name, request_, other, reason):
    await ledger.open(credit=100)
    await ledger.hold(10, "open")
    first = await getattr(ledger, name)(request_)
    before = await ledger.GetAccount(pb.GetAccountRequest(account_id="acme"))
    again = getattr(ledger, name)(request_)
    assert await again == first
    if name != "DeleteLimit":  # ending what is not there is no replay, and as harmless
        assert ("idempotency-replayed", "true") in tuple(await again.trailing_metadata())
    if other is not None:
        refusal = await refused(getattr(ledger, name)(other))
        assert (refusal.reason, refusal.code) == (reason, grpc.StatusCode.ALREADY_EXISTS)
    assert await ledger.GetAccount(pb.GetAccountRequest(account_id="acme")) == before


async def test_same_credit_asked_for_by_many_at_once_is_given_once(ledger):
    await ledger.open()
    answers = await asyncio.gather(*(ledger.credit(5, request_id="same") for _ in range(40)))
    assert len({answer.transaction_id for answer in answers}) == 1
    assert (await ledger.balance()).available_nanos == 5


async def test_account_opened_by_many_at_once_is_opened_once(ledger):
    calls = [ledger.OpenAccount(pb.OpenAccountRequest(account_id="new", display_name=f"{n % 2}")) for n in range(20)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    names = {answer.display_name for answer in answers if not isinstance(answer, BaseException)}
    assert len(names) == 1
    assert sum(isinstance(answer, BaseException) for answer in answers) == 10


async def test_key_of_one_account_is_free_in_another(ledger):
    await ledger.open()
    await ledger.open("other")
    await ledger.credit(5, request_id="same")
    assert (await ledger.credit(7, "other", request_id="same")).amount_nanos == 7


async def test_account_opened_again_under_another_key_is_the_same(ledger):
    first = await ledger.OpenAccount(pb.OpenAccountRequest(account_id="new", request_id="one"))
    assert await ledger.OpenAccount(pb.OpenAccountRequest(account_id="new", request_id="two")) == first


async def test_credit_is_replayed_after_it_has_expired(ledger):
    await ledger.open()
    stamp = Timestamp()
    stamp.FromMilliseconds(int(datetime.now(UTC).timestamp() * 1000) + 600)
    first = await ledger.credit(5, request_id="r1", expires_at=stamp)
    await asyncio.sleep(0.7)
    assert await ledger.credit(5, request_id="r1", expires_at=stamp) == first


async def test_refused_request_leaves_its_key_free(ledger):
    await ledger.open()
    assert (await refused(ledger.hold(5, "h1"))).reason == "INSUFFICIENT_CREDIT"
    await ledger.credit(5)
    assert (await ledger.hold(4, "h1")).hold.amount_nanos == 4
