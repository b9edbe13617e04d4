"""Credit: spent in order, expiring to the second, whether or not a worker runs."""

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.db import async_engine
from services.ledger.group_commit import GroupCommit
from services.ledger.service import Ledger
from services.ledger.store.reads import Reads
from tests.ledger.support.ledger_client import refused, violations


def after(seconds):
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return stamp


async def test_credit_is_spent_by_priority_then_expiry_then_age(ledger):
    await ledger.open()
    given = [
        ({}, 6),
        ({"expires_at": after(7200)}, 4),
        ({"expires_at": after(3600)}, 3),
        ({"priority": 0}, 1),
        ({"priority": 1, "source": "promotion"}, 2),
        ({"expires_at": after(7200 + 1)}, 5),
    ]
    expected = {}
    for words, place in given:
        expected[place] = f"grant-{(await ledger.credit(10, **words)).sequence}"
    in_order = [expected[place] for place in sorted(expected)]
    assert [g.grant_id for g in (await ledger.balance()).grants] == in_order
    await ledger.hold(25, "h1")
    settled = await ledger.settle(25, "h1")
    assert [(use.grant_id, use.amount_nanos) for use in settled.transaction.grant_uses] == list(
        zip(in_order, [10, 10, 5], strict=False)
    )


async def test_expired_credit_is_journalled_and_cannot_be_spent_though_no_worker_runs(ledger):
    await ledger.open(credit=5)
    await ledger.credit(100, expires_at=after(1))
    await asyncio.sleep(1.05)
    assert (await refused(ledger.hold(6, "h1"))).reason == "INSUFFICIENT_CREDIT"
    balance = await ledger.balance()
    assert (balance.available_nanos, balance.expired_nanos, balance.funded_nanos) == (5, 100, 105)
    (expiry,) = await ledger.transactions(type="expiry")
    assert (expiry.amount_nanos, expiry.balance_after_nanos) == (-100, 5)
    assert [(use.grant_id, use.amount_nanos) for use in expiry.grant_uses] == [("grant-2", 100)]


async def test_looking_at_the_balance_is_enough_for_credit_to_expire(ledger):
    await ledger.open()
    await ledger.credit(100, expires_at=after(1))
    await asyncio.sleep(1.05)
    balance = await ledger.balance()
    assert (balance.available_nanos, list(balance.grants)) == (0, [])
    assert len(await ledger.transactions(type="expiry")) == 1


async def test_held_credit_does_not_expire_under_its_hold(ledger):
    await ledger.open()
    await ledger.credit(100, expires_at=after(1))
    await ledger.hold(70, "h1")
    await asyncio.sleep(1.05)
    balance = await ledger.balance()
    assert (balance.available_nanos, balance.held_nanos, balance.expired_nanos) == (0, 70, 30)
    assert (await ledger.settle(60, "h1")).available_nanos == 0
    assert (await ledger.balance()).expired_nanos == 40


async def test_worker_expires_what_nobody_looks_at(ledger, ledger_settings):
    await ledger.open()
    await ledger.open("idle")
    await ledger.credit(100, expires_at=after(1))
    await ledger.credit(40, "idle")
    await ledger.hold(30, "h1", "idle", ttl_seconds=1)
    await asyncio.sleep(1.05)
    engine, commits = async_engine(ledger_settings), GroupCommit(ledger_settings)
    commits.start()
    try:
        worker = Ledger(commits, Reads(engine))
        with psycopg.connect(ledger_settings.database_url) as connection:  # a while ago
            connection.execute("UPDATE accounts SET touched_at = touched_at - interval '1 minute'")
        assert await worker.sweep(10) == 2
        assert await worker.sweep(10) == 0
        assert (await Reads(engine).account("acme")).expired == 100
        assert (await Reads(engine).account("idle")).available == 40
    finally:
        await commits.stop()
        await engine.dispose()


async def test_credit_that_would_have_expired_already_is_refused(ledger):
    await ledger.open()
    refusal = await refused(ledger.credit(100, expires_at=after(-1)))
    assert (refusal.reason, violations(refusal)) == ("GRANT_EXPIRED", {"expires_at"})


@pytest.mark.parametrize(
    ("source", "type_"),
    [
        ("", "credit_purchase"),
        ("purchase", "credit_purchase"),
        ("subscription", "subscription_grant"),
        ("promotion", "promotion"),
        ("adjustment", "credit_adjustment"),
        ("refund", "refund"),
    ],
)
async def test_source_decides_the_transaction_type(ledger, source, type_):
    await ledger.open()
    credited = await ledger.credit(7, source=source, description="thank you")
    assert (credited.type, credited.amount_nanos, credited.balance_after_nanos) == (type_, 7, 7)
    (grant,) = (await ledger.balance()).grants
    assert (grant.source, grant.transaction_id) == (source or "purchase", credited.transaction_id)


async def test_dollars_are_taken_exactly(ledger):
    await ledger.open()
    assert (await ledger.credit(None, amount_usd="10.000000001")).amount_nanos == 10_000_000_001
