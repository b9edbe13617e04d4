"""Balances of past times: exactly what was answered then, whatever came later."""

import random
from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from tests.ledger.support.ledger_client import refused, violations
from tests.ledger.support.ledger_clock import Clock, stamp


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


SOURCES = ("purchase", "subscription", "promotion", "adjustment", "refund")
REFUSED = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION}


async def at(ledger, moment, account_id="acme"):
    moment = stamp(moment) if isinstance(moment, datetime) else moment
    return await ledger.GetBalance(pb.GetBalanceRequest(account_id=account_id, as_of=moment))


class Life:
    """Random operations on one account, as many kinds as there are."""

    def __init__(self, ledger, clock, seed):
        self.ledger, self.clock, self.random = ledger, clock, random.Random(seed)
        self.holds, self.spent, self.given, self.number = [], [], [], 0

    async def step(self):
        self.number += 1
        kind = self.random.choice(
            ("credit", "credit", "hold", "hold", "hold", "settle", "settle", "release", "extend", "debit", "adjust",
             "refund", "reverse", "batch")
        )  # fmt: skip
        try:
            await getattr(self, kind)(f"r{self.number}", self.random.randint(1, 60))
        except grpc.RpcError as error:
            if error.code() not in REFUSED:
                raise
        wait = self.random.choice(({"microseconds": 1}, {"seconds": 20}, {"hours": 5}, {"days": 2}))
        self.clock.wait(**wait)

    async def credit(self, name, amount):
        words = {"priority": self.random.randint(0, 3), "source": self.random.choice(SOURCES)}
        if self.random.random() < 0.7:
            words["expires_at"] = self.clock.stamp(hours=self.random.randint(1, 100))
            words["rollover_cap_nanos"] = self.random.choice((0, 0, 10))
        self.given.append((await self.ledger.credit(amount * 2, request_id=name, **words)).transaction_id)

    async def hold(self, name, amount):
        await self.ledger.hold(amount, name, ttl_seconds=self.random.choice((10, 3600, 86_400)))
        self.holds.append(name)

    async def settle(self, _, amount):
        if self.holds:
            charged = await self.ledger.settle(amount, self.holds.pop())
            self.spent.append(charged.transaction.transaction_id)

    async def release(self, _, __):
        if self.holds:
            await self.ledger.release(self.holds.pop(0))

    async def extend(self, name, amount):
        if self.holds:
            await self.ledger.ExtendHold(
                pb.ExtendHoldRequest(
                    account_id="acme", hold_id=self.holds[-1], additional_nanos=amount, request_id=name
                )
            )

    async def debit(self, name, amount):
        request = pb.DebitAccountRequest(account_id="acme", amount_nanos=amount, request_id=name)
        self.spent.append((await self.ledger.DebitAccount(request)).transaction.transaction_id)

    async def adjust(self, name, amount):
        direction = self.random.choice(("credit", "debit"))
        await self.ledger.AdjustBalance(
            pb.AdjustBalanceRequest(account_id="acme", amount_nanos=amount, direction=direction, request_id=name)
        )

    async def refund(self, name, amount):
        if self.spent:
            request = pb.RefundTransactionRequest(
                account_id="acme", transaction_id=self.random.choice(self.spent), request_id=name, amount_nanos=amount
            )
            await self.ledger.RefundTransaction(request)

    async def reverse(self, name, amount):
        if self.given:
            request = pb.ReverseTransactionRequest(
                account_id="acme", transaction_id=self.random.choice(self.given), request_id=name, amount_nanos=amount
            )
            await self.ledger.ReverseTransaction(request)

    async def batch(self, name, amount):
        """Several entries dated the same."""
        await self.ledger.apply(
            ("credit", pb.CreditAccountRequest(account_id="acme", amount_nanos=amount, request_id=name)),
            ("hold", pb.CreateHoldRequest(account_id="acme", hold_id=name, amount_nanos=amount)),
            ("settle", pb.SettleHoldRequest(account_id="acme", hold_id=name, amount_nanos=amount // 2)),
        )


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_balance_of_each_past_moment_is_what_was_answered_then(ledger, clock, seed):
    await ledger.open(overdraft=resources.Overdraft(kind="fixed", limit_nanos=50))
    life = Life(ledger, clock, seed)
    noted = [await ledger.balance()]
    clock.wait(microseconds=1)
    for _ in range(90):
        await life.step()
        noted.append(await ledger.balance())
        clock.wait(microseconds=1)
    assert len({balance.last_sequence for balance in noted}) > 40
    assert any(balance.overdrawn_nanos for balance in noted)
    assert len({balance.cycle_start.seconds for balance in noted}) > 1
    for balance in noted:
        for grant in balance.grants:
            grant.reserved_nanos = 0
        assert await at(ledger, balance.as_of) == balance, f"seed {seed}"


async def test_expiry_and_lapse_that_nobody_saw_happen_when_they_were_due(ledger, clock):
    start = clock.now
    await ledger.open(credit=10)
    await ledger.credit(100, expires_at=stamp(start + timedelta(hours=1)))
    await ledger.hold(40, "h1", ttl_seconds=7200)
    clock.wait(days=3)
    tick = timedelta(microseconds=1)
    found = [
        (balance.available_nanos, balance.held_nanos, balance.expired_nanos, balance.last_sequence)
        for moment in (start + timedelta(hours=1), start + timedelta(hours=2))
        for balance in (await at(ledger, moment - tick), await at(ledger, moment))
    ]
    assert found == [(70, 40, 0, 3), (10, 40, 60, 4), (10, 40, 60, 4), (10, 0, 100, 6)]


async def test_grant_that_is_gone_now_is_there_with_what_it_had(ledger, clock):
    await ledger.open()
    given = await ledger.credit(100, source="promotion", priority=7, expires_at=clock.stamp(days=9))
    clock.wait(seconds=1)
    await ledger.hold(30, "h1")
    await ledger.settle(30, "h1")
    then = clock.now
    clock.wait(seconds=1)
    await ledger.hold(70, "h2")
    await ledger.settle(70, "h2")
    assert not (await ledger.balance()).grants
    (grant,) = (await at(ledger, then)).grants
    assert (grant.remaining_nanos, grant.amount_nanos, grant.priority, grant.source) == (70, 100, 7, "promotion")
    assert (grant.transaction_id, grant.created_at) == (given.transaction_id, given.created_at)
    assert grant.expires_at.ToDatetime(UTC) == clock.now + timedelta(days=9, seconds=-2)


async def test_cycle_spending_of_an_earlier_cycle_leaves_out_what_it_refunds_of_the_one_before(ledger, monkeypatch):
    clock = Clock(monkeypatch, datetime(2026, 9, 10, tzinfo=UTC))
    await ledger.open(credit=100)
    first = await ledger.DebitAccount(pb.DebitAccountRequest(account_id="acme", amount_nanos=30, request_id="d1"))
    clock.wait(days=31)
    second = await ledger.DebitAccount(pb.DebitAccountRequest(account_id="acme", amount_nanos=20, request_id="d2"))
    for number, entry in enumerate((first, second)):
        await ledger.RefundTransaction(
            pb.RefundTransactionRequest(
                account_id="acme", transaction_id=entry.transaction.transaction_id, amount_nanos=5,
                request_id=f"r{number}",
            )
        )  # fmt: skip
    then = await ledger.balance()
    assert (then.cycle_spent_nanos, then.spent_nanos) == (15, 40)
    clock.wait(days=60)
    assert (await ledger.balance()).cycle_spent_nanos == 0
    assert await at(ledger, then.as_of) == then


async def test_credit_given_as_a_refund_refunds_nothing_that_was_spent_in_its_cycle(ledger, clock):
    await ledger.open(credit=100)
    await ledger.DebitAccount(pb.DebitAccountRequest(account_id="acme", request_id="d1", amount_nanos=40))
    await ledger.credit(7, source="refund")
    clock.wait(seconds=1)
    balance = await at(ledger, clock.stamp())
    assert (balance.available_nanos, balance.spent_nanos, balance.cycle_spent_nanos) == (67, 40, 40)


async def test_changed_anchor_leaves_the_cycles_since_as_they_were_and_never_two_at_once(ledger, clock):
    await ledger.open(credit=100)
    clock.wait(days=3)
    account = resources.Account(account_id="acme", cycle_anchor=clock.stamp(days=5))
    request = pb.UpdateAccountRequest(account=account, request_id="u")
    request.update_mask.paths.append("cycle_anchor")
    await ledger.UpdateAccount(request)
    clock.wait(seconds=1)
    since = await ledger.balance()
    clock.wait(days=4)
    assert await at(ledger, since.as_of) == since
    before = await at(ledger, clock.now - timedelta(days=6))
    assert before.cycle_end == since.cycle_start


@pytest.mark.parametrize("off", [timedelta(seconds=1), timedelta(days=-1)])
async def test_time_that_is_no_past_of_the_account_is_refused(ledger, clock, off):
    await ledger.open(credit=100)
    refusal = await refused(at(ledger, clock.now + off))
    assert (refusal.reason, violations(refusal)) == ("INVALID_ARGUMENT", {"as_of"})


async def test_balance_at_the_very_opening_is_empty_and_no_account_has_none(ledger, clock):
    opened = clock.now
    await ledger.open()
    clock.wait(seconds=1)
    await ledger.credit(5)
    balance = await at(ledger, opened)
    assert (balance.available_nanos, balance.last_sequence, list(balance.grants)) == (0, 0, [])
    assert (await refused(at(ledger, opened, "nobody"))).reason == "ACCOUNT_NOT_FOUND"


async def test_time_whose_entries_are_archived_is_refused_by_name(ledger, clock, ledger_settings):
    await ledger.open(credit=100)
    then = clock.now
    clock.wait(days=70)
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute(
            "INSERT INTO checkpoints SELECT account_id, 1, '', 0, 0, 0, 0, 0, '[]', 0, %s FROM accounts",
            (then + timedelta(days=30),),
        )
    refusal = await refused(at(ledger, then))
    assert (violations(refusal), "archived" in refusal.message) == ({"as_of"}, True)
    assert (await at(ledger, clock.now)).available_nanos == 100
