"""Refunds and reversals: new entries that give back or take back no more than the original, to where it came from."""

import asyncio
from datetime import UTC, datetime, timedelta

from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from tests.ledger.support.ledger_audit import audit
from tests.ledger.support.ledger_client import reasons, refused, violations


async def spent(ledger, nanos, hold_id="h1"):
    """The transaction of a call that cost so much."""
    await ledger.hold(nanos, hold_id)
    return (await ledger.settle(nanos, hold_id)).transaction


async def refund(ledger, transaction, request_id, nanos=None, account_id="acme", **words):
    return await ledger.RefundTransaction(
        pb.RefundTransactionRequest(
            account_id=account_id,
            transaction_id=transaction.transaction_id,
            amount_nanos=nanos,
            request_id=request_id,
            **words,
        )
    )


async def reverse(ledger, transaction, request_id, nanos=None):
    return await ledger.ReverseTransaction(
        pb.ReverseTransactionRequest(
            account_id="acme", transaction_id=transaction.transaction_id, amount_nanos=nanos, request_id=request_id
        )
    )


async def remaining(ledger):
    return {(g.source, g.remaining_nanos) for g in (await ledger.balance()).grants}


async def test_refund_returns_to_the_grants_that_paid_the_last_one_first(ledger, ledger_settings):
    await ledger.open()
    await ledger.credit(60, source="promotion", priority=1)
    await ledger.credit(100)
    charged = await spent(ledger, 90)
    assert await remaining(ledger) == {("purchase", 70)}
    first = await refund(ledger, charged, "r1", 40)
    assert (first.type, first.amount_nanos, first.balance_after_nanos) == ("refund", 40, 110)
    assert first.original_transaction_id == charged.transaction_id
    assert await remaining(ledger) == {("purchase", 100), ("promotion", 10)}
    balance = await ledger.balance()
    assert (balance.spent_nanos, balance.cycle_spent_nanos) == (50, 50)
    await refund(ledger, charged, "r2")  # the rest
    assert await remaining(ledger) == {("purchase", 100), ("promotion", 60)}
    audit(ledger_settings.database_url)


async def test_no_more_is_refunded_than_was_spent_however_many_ask_at_once(ledger, ledger_settings):
    await ledger.open(credit=100)
    charged = await spent(ledger, 50)
    asked = [refund(ledger, charged, f"r{number}", 20) for number in range(8)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, Exception) for answer in answers) == 6
    refusal = await refused(refund(ledger, charged, "more", 11))
    assert (refusal.reason, refusal.metadata["leftNanos"]) == ("REFUND_EXCEEDS_ORIGINAL", "10")
    assert (await ledger.balance()).available_nanos == 90
    audit(ledger_settings.database_url)


async def test_repeated_refund_is_the_same_refund(ledger):
    await ledger.open(credit=100)
    charged = await spent(ledger, 50)
    first = await refund(ledger, charged, "r1", 20)
    assert await refund(ledger, charged, "r1", 20) == first
    assert (await refused(refund(ledger, charged, "r1", 21))).reason == "IDEMPOTENCY_CONFLICT"
    assert (await ledger.balance()).available_nanos == 70


async def test_refund_of_credit_that_has_expired_is_not_lost(ledger, ledger_settings):
    await ledger.open()
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await ledger.credit(50, source="subscription", expires_at=soon)
    charged = await spent(ledger, 30)
    await ledger.balance_once_expired()
    await refund(ledger, charged, "r1")
    assert await remaining(ledger) == {("refund", 30)}
    audit(ledger_settings.database_url)


async def test_refund_pays_what_is_overdrawn(ledger, ledger_settings):
    await ledger.open(credit=10)
    await ledger.hold(10, "h1")
    charged = (await ledger.settle(35, "h1")).transaction
    assert (await ledger.balance()).overdrawn_nanos == 25
    await refund(ledger, charged, "r1", 20)
    assert (await ledger.balance()).overdrawn_nanos == 5
    await ledger.credit(100)
    await refund(ledger, charged, "r2")
    balance = await ledger.balance()
    assert (balance.available_nanos, balance.overdrawn_nanos, balance.spent_nanos) == (110, 0, 0)
    audit(ledger_settings.database_url)


async def test_only_deductions_are_refunded_and_only_credits_reversed(ledger):
    await ledger.open()
    given = await ledger.credit(100)
    charged = await spent(ledger, 50)
    assert (await refused(refund(ledger, given, "r1"))).reason == "NOT_REFUNDABLE"
    assert (await refused(reverse(ledger, charged, "r1"))).reason == "NOT_REFUNDABLE"
    again = await refund(ledger, charged, "r1")
    assert (await refused(refund(ledger, again, "r2"))).reason == "NOT_REFUNDABLE"
    assert (await refused(reverse(ledger, again, "r2"))).reason == "NOT_REFUNDABLE"
    charged.transaction_id = "txn-202001-2"  # of another month: not this one's name
    assert (await refused(refund(ledger, charged, "r3"))).reason == "TRANSACTION_NOT_FOUND"


async def test_refund_names_what_is_wrong_with_it(ledger):
    await ledger.open(credit=100)
    request = pb.RefundTransactionRequest(account_id="acme", amount_nanos=0, amount_usd="1", description="x" * 501)
    assert violations(await refused(ledger.RefundTransaction(request))) >= {
        "transaction_id", "request_id", "description",
    }  # fmt: skip


async def test_reversal_takes_its_own_grant_first_then_other_credit_then_overdraws(ledger, ledger_settings):
    await ledger.open()
    await ledger.credit(30, source="promotion", priority=200)
    paid = await ledger.credit(100)
    await spent(ledger, 60)
    first = await reverse(ledger, paid, "r1", 40)
    assert (first.type, first.amount_nanos) == ("reversal", -40)
    assert await remaining(ledger) == {("promotion", 30)}
    await reverse(ledger, paid, "r2")
    balance = await ledger.balance()
    assert (balance.available_nanos, balance.overdrawn_nanos, balance.funded_nanos) == (-30, 30, 30)
    assert (await refused(reverse(ledger, paid, "r3", 1))).reason == "REFUND_EXCEEDS_ORIGINAL"
    audit(ledger_settings.database_url)


async def test_reversal_owes_nothing_for_what_expired_unspent(ledger, ledger_settings):
    await ledger.open()
    paid = await ledger.credit(100, expires_at=datetime.now(UTC) + timedelta(seconds=1))
    await spent(ledger, 30)
    await ledger.balance_once_expired()
    await reverse(ledger, paid, "r1")
    balance = await ledger.balance()
    assert (balance.available_nanos, balance.expired_nanos, balance.funded_nanos) == (-30, 0, 0)
    audit(ledger_settings.database_url)


async def test_undoing_in_a_batch_is_undone_with_its_group(ledger, ledger_settings):
    await ledger.open(credit=100)
    charged = await spent(ledger, 50)
    request = pb.RefundTransactionRequest(
        account_id="acme", transaction_id=charged.transaction_id, amount_nanos=50, request_id="r1"
    )
    too_much = pb.DebitAccountRequest(account_id="acme", amount_nanos=1000, request_id="d1")
    results = await ledger.apply(("refund", request, True), ("debit", too_much))
    assert reasons(results) == ["LINKED_OPERATION_FAILED", "INSUFFICIENT_CREDIT"]
    (result,) = await ledger.apply(("refund", request))
    assert result.transaction.balance_after_nanos == 100
    audit(ledger_settings.database_url)
