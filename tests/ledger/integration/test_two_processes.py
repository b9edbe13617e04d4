"""Two ledger processes on one database, and kill -9 of each and of Postgres: nothing acknowledged is lost."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract
from tollkeeper.ledger.v1 import resources_pb2 as resources

from deploy.local import ports, postgres
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Program
from services.kit.identity import Role
from services.kit.migrations import upgrade
from services.ledger.__main__ import MIGRATIONS
from tests.ledger.support.ledger_audit import audit, rows

ROOT = Path(__file__).parents[3]
ACCOUNTS = [f"a{number}" for number in range(3)]
CLIENTS = 12
PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


class Part:
    """One process of the suite, which can be killed and started again."""

    def __init__(self, program, port, log, stack):
        words = {"name": program.name, "argv": program.argv, "env": dict(program.env), "cwd": str(program.cwd)}
        self._words = json.dumps(words | {"user": program.user, "port": port, "log": str(log)})
        self._keeper = None
        stack.callback(self.kill)
        self.start()

    def start(self):
        keeper = [sys.executable, "-m", "tests.ledger.support.ledger_keeper"]
        self._keeper = subprocess.Popen(keeper, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._keeper.stdin.write(self._words + "\n")
        self._keeper.stdin.flush()
        self._pid = int(self._keeper.stdout.readline())

    def kill(self):
        """kill -9."""
        if self._keeper is not None and self._keeper.poll() is None:
            os.kill(self._pid, signal.SIGKILL)
            self._keeper.communicate(timeout=30)


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def database(servers_folder, stack):
    """A Postgres of its own that waits for the disk, with the ledger's schema."""
    folder = servers_folder / "durable"
    server = EmbeddedPostgres(folder=folder, port=ports.free_port(), password="secret", durable=True)
    server.initialise()
    part = Part(server.program(), server.port, servers_folder / "durable.log", stack)
    while not server.ready():
        time.sleep(0.05)
    url = postgres.create_database(server.url(), name="tollkeeper_ledger", owner="tollkeeper_ledger", password="ledger")
    upgrade(url, MIGRATIONS)
    return part, url


@pytest.fixture
def replicas(database, identity, tmp_path, stack):
    made = []
    for number in range(2):
        port = ports.free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "TOLLKEEPER_LEDGER_LISTEN": f"127.0.0.1:{port}",
            "TOLLKEEPER_LEDGER_DATABASE_URL": database[1],
            "TOLLKEEPER_IDENTITY_JWKS_FILE": str(identity.file),
            "TOLLKEEPER_LOG_LEVEL": "warning",
        }
        program = Program(
            name=f"ledger{number}",
            argv=(sys.executable, "-m", "services.ledger", "serve"),
            env=environment,
            cwd=ROOT,
        )
        part = Part(program, port, tmp_path / f"ledger{number}.log", stack)
        made.append((part, f"127.0.0.1:{port}"))
    return made


class Clients:
    """Callers that do not give up, and remember what was acknowledged."""

    def __init__(self, channels, metadata):
        self._stubs = [contract.LedgerServiceStub(channel) for channel in channels]
        self._metadata = metadata
        self.done = False
        self.held, self.settled, self.released, self.credited = {}, {}, set(), {}
        self.retried = Counter()

    async def insist(self, turn, name, request):
        """Call until there is an answer, at one replica and the other in turn."""
        deadline = time.monotonic() + 30
        while True:
            try:
                stub = self._stubs[turn % 2]
                return await getattr(stub, name)(request, metadata=self._metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING or time.monotonic() > deadline:
                    raise
                self.retried[error.code().name] += 1
                turn += 1
                await asyncio.sleep(0.05)

    async def call_forever(self, number):
        account_id = ACCOUNTS[number % len(ACCOUNTS)]
        turn = 0
        while not self.done:
            turn += 1
            key = {"account_id": account_id, "hold_id": f"h{number}-{turn}"}
            place = (account_id, key["hold_id"])
            await self.insist(
                number + turn, "CreateHold", pb.CreateHoldRequest(**key, amount_nanos=100, tokens=10, key_id="k")
            )
            self.held[place] = 100
            if turn % 5 == 0:
                await self.insist(number, "ReleaseHold", pb.ReleaseHoldRequest(**key))
                self.released.add(place)
            elif turn % 7:
                report = resources.UsageReport(provider="openai", input_tokens=turn)
                request = pb.SettleHoldRequest(**key, amount_nanos=turn % 130, tokens=turn % 13, usage=report)
                settled = await self.insist(number, "SettleHold", request)
                self.settled[place] = (turn % 130, settled.usage_id)
            if turn % 3 == 0:
                request = pb.CreditAccountRequest(
                    account_id=account_id, request_id=f"c{number}-{turn}", amount_nanos=50
                )
                credited = await self.insist(number, "CreditAccount", request)
                self.credited[account_id, request.request_id] = credited.transaction_id


async def break_things(parts, clients):
    """kill -9 of one part after the other, each started again after a moment; then the clients may end."""
    try:
        for part in parts:
            await asyncio.sleep(1.0)
            await asyncio.to_thread(part.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(part.start)
        await asyncio.sleep(1.0)
    finally:
        clients.done = True


async def test_what_was_acknowledged_is_there_once_whatever_was_killed(database, replicas, identity):
    postgres_part, url = database
    metadata = (("authorization", f"Bearer {identity.token(Role.SERVICE)}"),)
    options = [("grpc.min_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    async with contextlib.AsyncExitStack() as channels:
        opened = [
            await channels.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _, address in replicas
        ]
        accounts = contract.AccountServiceStub(opened[0])
        clients = Clients(opened, metadata)
        for account_id in ACCOUNTS:
            await accounts.OpenAccount(pb.OpenAccountRequest(account_id=account_id), metadata=metadata)
            for unit in ("nanos", "tokens", "requests"):
                limit = pb.SetLimitRequest(
                    account_id=account_id, scope="key", subject="k", unit=unit, window="lifetime", amount=10**12
                )
                await clients.insist(0, "SetLimit", limit)
            start_credit = pb.CreditAccountRequest(account_id=account_id, request_id="first", amount_nanos=10**12)
            await clients.insist(0, "CreditAccount", start_credit)
        parts = [replicas[0][0], postgres_part, replicas[1][0], postgres_part]
        await asyncio.gather(break_things(parts, clients), *(clients.call_forever(number) for number in range(CLIENTS)))
    assert clients.retried, "nothing was broken while calls ran"
    assert len(clients.settled) > 100
    journal = audit(url)
    check_acknowledged(url, clients, journal)
    check_limits(url)


def check_acknowledged(url, clients, journal):
    holds = {(hold.account_id, hold.hold_id): hold for hold in rows(url, "SELECT * FROM holds")}
    usage = {(row.account_id, row.hold_id): row for row in rows(url, "SELECT * FROM usage")}
    assert clients.held.keys() == holds.keys()  # each client insisted until it was told
    for place, (amount, usage_id) in clients.settled.items():
        assert (holds[place].status, holds[place].settled, holds[place].usage_id) == ("settled", amount, usage_id)
        assert usage[place].billed == amount
    assert clients.settled.keys() == usage.keys()
    assert {place for place, hold in holds.items() if hold.status == "released"} == clients.released
    credited = {
        (account_id, entry.request_id)
        for account_id, entries in journal.items()
        for entry in entries
        if entry.type == "credit_purchase" and entry.request_id != "first"
    }
    assert credited == clients.credited.keys()


def check_limits(url):
    """The counters of each key are what its holds say."""
    for row in rows(url, "SELECT account_id, limits FROM subject_limits"):
        holds = rows(url, f"SELECT * FROM holds WHERE account_id = '{row.account_id}'")
        for limit in row.limits:
            column = {"nanos": "amount", "tokens": "tokens", "requests": "requests"}[limit["unit"]]
            assert limit["held"] == sum(getattr(hold, column) for hold in holds if hold.status == "open")
            if limit["unit"] == "nanos":
                assert limit["used"] == sum(hold.settled for hold in holds)
            if limit["unit"] == "requests":
                assert limit["used"] == sum(hold.status == "settled" for hold in holds)
