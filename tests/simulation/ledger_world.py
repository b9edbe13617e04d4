"""Owns a world of ledgers under attack: clients that never give up, parts that are killed, and what must hold after.

Each client has an account of its own, where it alone does things, so that a shadow knows every answer and figure; and
all share accounts that they do things to at once, of which the rows are audited.
"""

import asyncio
import time
from datetime import UTC, datetime
from random import Random
from types import SimpleNamespace

import grpc
import grpc.aio
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract

from services.ledger.model.operations import SetStatus, Touch
from services.ledger.model.rows import transaction_id
from tests.ledger.support.ledger_audit import audit, rows
from tests.ledger.support.ledger_chance import REAL_TIME, Chance
from tests.ledger.support.ledger_client import reasons
from tests.ledger.support.ledger_proto import batch_of
from tests.ledger.support.ledger_shadow import Shadow

PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
GIVE_UP_SECONDS = 60
OWN, SHARED = 6, 2
CHANNEL_OPTIONS = [("grpc.min_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]


class Own:
    """A client's own account: what it has done there so far, as Chance wants to know it, and the shadow of it."""

    def __init__(self, account_id):
        self.account_id = account_id
        self.shadow = Shadow({account_id: 0}, datetime.now(UTC))
        self.requests, self.entries = {}, {}

    @property
    def now(self):
        return datetime.now(UTC)

    @property
    def holds(self):
        return {
            (self.account_id, name): SimpleNamespace(status=hold.status, billable=hold.asked.billable)
            for name, hold in self.shadow.accounts[self.account_id].holds.items()
        }

    def note(self, operation, result):
        """Remember what an operation wrote."""
        self.requests[getattr(operation, "request_id", None)] = operation
        kind = result.WhichOneof("kind")
        entry = {"transaction": result.transaction, "debit": result.debit.transaction}.get(
            kind, result.settle.transaction
        )
        if kind in {"transaction", "debit", "settle"} and entry.sequence:
            postings = {posting.sub_account: posting.amount_nanos for posting in entry.postings}
            self.entries[entry.sequence] = SimpleNamespace(
                account_id=self.account_id,
                sequence=entry.sequence,
                type=entry.type,
                created_at=entry.created_at.ToDatetime(tzinfo=UTC),
                hold_id=entry.hold_id,
                request_id=entry.request_id,
                funding=postings.get("funding", 0),
            )


class World:
    """Clients of several ledgers on one database. `home`: which of them they all call while it answers; None: each.

    What a ledger remembers of accounts serves it only where no other writes to them.
    """

    def __init__(self, addresses, metadata, number, home):
        self._channels = [grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) for address in addresses]
        self._metadata = metadata
        self._number, self._home = number, home
        self.own = [Own(f"own-{number}-{client}") for client in range(OWN)]
        self.shared = [f"shared-{number}-{account}" for account in range(SHARED)]
        self.acknowledged = 0
        self.retried = 0
        self._settled, self._credited = {}, {}

    async def open(self):
        for account_id in [own.account_id for own in self.own] + self.shared:
            await self.insist(0, "AccountService", "OpenAccount", pb.OpenAccountRequest(account_id=account_id))
        for account_id in self.shared:
            for scope, subject in (("account", ""), ("key", "k1"), ("workspace", "w1")):
                for unit in ("nanos", "tokens", "requests"):
                    limit = pb.SetLimitRequest(
                        account_id=account_id, scope=scope, subject=subject, unit=unit, window="month", amount=10**12
                    )
                    await self.insist(1, "LedgerService", "SetLimit", limit)

    async def close(self):
        for channel in self._channels:
            await channel.close()

    async def insist(self, turn, service, name, request):
        """Call until there is an answer, at one replica and the other in turn."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        turn = turn if self._home is None else self._home
        while True:
            stub = getattr(contract, f"{service}Stub")(self._channels[turn % len(self._channels)])
            try:
                answer = await getattr(stub, name)(request, metadata=self._metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING or time.monotonic() > deadline:
                    raise
                self.retried += 1
                turn += 1
                await asyncio.sleep(0.05)
            else:
                self.acknowledged += 1
                return answer

    async def burst(self, seed, steps):
        """All clients at once: each does a few linked groups at its own account, and things at the shared ones."""
        clients = [self._live(own, Random(f"{seed}-{own.account_id}"), steps) for own in self.own]
        await asyncio.gather(*clients, *(self._share(f"{seed}-{number}", steps) for number in range(OWN)))

    async def _live(self, own, random, steps):
        for _ in range(steps):
            chance = Chance(random.randrange(2**32), own, {own.account_id: 1}, REAL_TIME)
            group = [chance.operation() for _ in range(random.choice([1, 1, 1, 2, 3]))]
            group = [x for x in group if not isinstance(x, Touch)]
            group = [x for x in group if not (isinstance(x, SetStatus) and x.status == "closed")]
            if not group:
                continue
            before = self.retried
            answer = await self.insist(random.randrange(2), "LedgerService", "Apply", batch_of(group))
            expected = own.shadow.apply([group], own.now, chance.names)
            found = [
                reason or ("replayed" if result.replayed else "done")
                for reason, result in zip(reasons(answer.results), answer.results, strict=True)
            ]
            if self.retried > before:  # it may have been done the first time
                found, expected = [["done" if x == "replayed" else x for x in y] for y in (found, expected)]
            assert found == expected, group
            for operation, result in zip(group, answer.results, strict=True):
                if not result.HasField("error"):
                    own.note(operation, result)

    async def _share(self, name, steps):
        random = Random(name)
        for step in range(steps):
            account_id, key = random.choice(self.shared), f"{name}-{step}"
            words = {"account_id": account_id, "hold_id": f"h-{key}"}
            if random.random() < 0.1:  # more often, and hardly any batch is of holds alone
                request = pb.CreditAccountRequest(account_id=account_id, request_id=f"c-{key}", amount_nanos=2500)
                given = await self.insist(step, "LedgerService", "CreditAccount", request)
                self._credited[account_id, request.request_id] = given.transaction_id
            made = pb.CreateHoldRequest(
                **words, amount_nanos=200, minimum_amount_nanos=0, tokens=9, key_id="k1", workspace="w1",
                ttl_seconds=random.choice([1, 300]),
            )  # fmt: skip
            try:
                await self.insist(step, "LedgerService", "CreateHold", made)
            except grpc.aio.AioRpcError as refusal:
                if refusal.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                continue
            ending = random.random()
            if ending < 0.6:
                settled = pb.SettleHoldRequest(**words, amount_nanos=random.randrange(300), tokens=5)
                answer = await self.insist(step + 1, "LedgerService", "SettleHold", settled)
                self._settled[account_id, words["hold_id"]] = (settled.amount_nanos, answer.usage_id)
                if answer.transaction.sequence and random.random() < 0.1:
                    refund = pb.RefundTransactionRequest(
                        account_id=account_id, transaction_id=answer.transaction.transaction_id, request_id=f"r-{key}"
                    )
                    await self.insist(step, "LedgerService", "RefundTransaction", refund)
            elif ending < 0.8:
                await self.insist(step + 1, "LedgerService", "ReleaseHold", pb.ReleaseHoldRequest(**words))

    async def look(self):
        """Own accounts are, to the nano, what their shadows are."""
        for own in self.own:
            shadow = own.shadow.accounts[own.account_id]
            request = pb.GetBalanceRequest(account_id=own.account_id)
            b = await self.insist(0, "AccountService", "GetBalance", request)
            figures = (b.available_nanos, b.held_nanos, b.funded_nanos, b.spent_nanos, b.expired_nanos)
            assert (*figures, b.overdrawn_nanos, b.cycle_spent_nanos) == shadow.figures(), own.account_id
            limits = await self.insist(
                1, "LedgerService", "ListLimits", pb.ListLimitsRequest(account_id=own.account_id)
            )
            found = {limit.limit_id: (limit.amount, limit.used, limit.held) for limit in limits.limits}
            assert found == shadow.limit_use(), own.account_id
            checked = await self.insist(
                1, "AccountService", "VerifyAccount", pb.VerifyAccountRequest(account_id=own.account_id)
            )
            assert checked.sound, checked

    def audit(self, url):
        """The rows add up, and what was acknowledged is there once."""
        journal = audit(url)
        holds = {
            (x.account_id, x.hold_id): x for x in rows(url, "SELECT * FROM holds WHERE account_id LIKE 'shared-%'")
        }
        for place, (amount, usage_id) in self._settled.items():
            hold = holds[place]
            assert (hold.status, hold.settled, hold.usage_id) == ("settled", amount, usage_id)
        given = {
            (account_id, entry.request_id): transaction_id(entry.created_at, entry.sequence)
            for account_id in self.shared
            for entry in journal[account_id]
            if entry.type == "credit_purchase"
        }
        assert given == self._credited
