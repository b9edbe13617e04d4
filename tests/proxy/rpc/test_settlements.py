"""Ends of holds are neither lost nor booked twice, whatever is away and whoever is cancelled; real Postgres."""

import asyncio
import base64
import contextlib
import re
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY
from proxy_fakes import USD, refusal, served
from structlog.testing import capture_logs
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc

from services.kit.channels import aio_channel
from services.kit.db import async_engine, connection_string
from services.proxy.ledger import Ledger
from services.proxy.outbox import OutboxStore, Settlements, insertion
from services.proxy.settings import ProxySettings

RUNBOOK = Path(__file__).parents[3] / "docs" / "operating" / "proxy.md"


@pytest.fixture
async def engine(proxy_database):
    engine = async_engine(ProxySettings(database_url=proxy_database))
    yield engine
    await engine.dispose()


@pytest.fixture
async def replica(engine, ledger):
    """`await replica()`: the settlements of one proxy, not delivering by themselves."""
    async with (
        served((ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server, ledger)) as address,
        contextlib.AsyncExitStack() as stack,
    ):

        async def made(*, timeout_seconds=1):
            found = Ledger(address, lambda *to: aio_channel(to[0], ProxySettings()), timeout_seconds=timeout_seconds)
            await found.start()
            stack.push_async_callback(found.stop)
            return Settlements(found, OutboxStore(engine), interval_seconds=0.1)

        yield made


@pytest.fixture
def rows(proxy_database):
    def read():
        with psycopg.connect(connection_string(proxy_database)) as connection:
            return connection.execute("SELECT hold_id, kind, attempts, refused FROM outbox ORDER BY 1").fetchall()

    return lambda: asyncio.to_thread(read)


@pytest.fixture
def execute(proxy_database):
    def write(statement, *arguments):
        with psycopg.connect(connection_string(proxy_database)) as connection:
            connection.execute(statement, arguments)

    return lambda *arguments: asyncio.to_thread(write, *arguments)


@pytest.fixture
def database_away(proxy_database, postgres_server):
    """`database_away(True)`: the proxy's database takes no connections, as long as that."""
    name = connection_string(proxy_database).rsplit("/", 1)[1]

    def turn(away):
        with psycopg.connect(connection_string(postgres_server.url()), autocommit=True) as admin:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {not away}')
            if away:
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    yield turn
    turn(False)


def hold(ledger, hold_id):
    request = pb.CreateHoldRequest(account_id="acme", hold_id=hold_id, amount_nanos=USD, tokens=10)
    ledger._hold(request)
    return pb.SettleHoldRequest(account_id="acme", hold_id=hold_id, amount_nanos=7, tokens=1)


async def keep(engine, request, *, due_seconds=0):
    async with engine.begin() as connection:
        await connection.execute(insertion(pb.Operation(settle=request), due_seconds=due_seconds))


def metric(name):
    return REGISTRY.get_sample_value(name)


async def test_settlement_goes_on_where_its_call_is_cancelled(replica, ledger, eventually):
    """As a call is when the proxy stops: not yet sent, it was dropped with the one who asked."""
    settlements, requests = await replica(), [hold(ledger, f"h{n}") for n in range(5)]
    ledger.delay_seconds = 0.2
    asking = [asyncio.create_task(settlements.settle(request)) for request in requests]
    await eventually(lambda: settlements._ending)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    await settlements.stop(5)
    assert sorted(ledger.settled) == ["h0", "h1", "h2", "h3", "h4"]


async def test_settlement_that_the_ledger_does_not_answer_is_in_the_outbox_when_the_proxy_stops(replica, ledger, rows):
    settlements, request = await replica(timeout_seconds=2), hold(ledger, "h1")
    ledger.delay_seconds = 60
    asking = asyncio.create_task(settlements.settle(request))
    await asyncio.sleep(0)
    await settlements.stop(0.1)
    assert [row[0] for row in await rows()] == ["h1"]
    await asyncio.wait([asking])


async def test_settlement_reaches_the_ledger_while_the_database_is_away_at_the_end(
    replica, ledger, database_away, rows
):
    settlements, request = await replica(), hold(ledger, "h1")
    ledger.down.add("settle")
    database_away(True)
    assert await settlements.settle(request) is None
    ledger.down.clear()
    await settlements.stop(5)
    database_away(False)
    assert list(ledger.settled) == ["h1"]
    assert await rows() == []


async def test_settlement_that_reaches_nobody_is_in_the_log_whole(replica, ledger, database_away):
    settlements, request = await replica(), hold(ledger, "h1")
    ledger.down.add("settle")
    database_away(True)
    await settlements.settle(request)
    with capture_logs() as logged:
        await settlements.stop(0.1)
    lost = next(entry for entry in logged if "is lost" in entry["event"])
    assert pb.Operation.FromString(base64.b64decode(lost["operation"])).settle == request
    told = (lost["log_level"], lost["account_id"], lost["hold_id"], lost["amount_nanos"])
    assert told == ("error", request.account_id, "h1", request.amount_nanos)


async def test_settlement_that_was_lost_is_billed_by_the_runbooks_statement(replica, ledger, database_away, execute):
    settlements, request = await replica(), hold(ledger, "h1")
    ledger.down.add("settle")
    database_away(True)
    await settlements.settle(request)
    with capture_logs() as logged:
        await settlements.stop(0.1)
    lost = next(entry for entry in logged if "is lost" in entry["event"])
    database_away(False)
    ledger.down.clear()
    (statement,) = re.findall("```sql\n(INSERT INTO outbox.*?)```", RUNBOOK.read_text(), re.DOTALL)
    named = re.findall(":'([a-z_]+)'", statement)
    for _ in range(2):
        await execute(re.sub(":'[a-z_]+'", "%s", statement), *(lost[name] for name in named))
    await (await replica()).deliver()
    assert list(ledger.settled) == ["h1"]


@pytest.fixture
def database_silent(proxy_database):
    """`with database_silent():` what is asked of the outbox is not answered, as long as that."""

    @contextlib.contextmanager
    def silenced():
        with psycopg.connect(connection_string(proxy_database)) as other:
            other.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
            yield

    return silenced


async def test_settlement_is_in_the_log_whole_also_where_the_database_says_nothing(
    ledger, proxy_database, database_silent
):
    engine = async_engine(ProxySettings(database_url=proxy_database, statement_timeout_seconds=60))
    async with served((ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server, ledger)) as address:
        way = Ledger(address, lambda *to: aio_channel(to[0], ProxySettings()), timeout_seconds=1)
        await way.start()
        settlements, request = Settlements(way, OutboxStore(engine), interval_seconds=0.05), hold(ledger, "h1")
        ledger.down.add("settle")
        with database_silent(), capture_logs() as logged:
            await settlements.start()
            await settlements.settle(request)
            await asyncio.wait_for(settlements.stop(0.5), 20)
            lost = next(entry for entry in logged if "is lost" in entry["event"])
            assert (lost["hold_id"], lost["amount_nanos"]) == ("h1", request.amount_nanos)
        await way.stop()
    await engine.dispose()


async def test_release_that_reaches_nobody_is_no_bill_that_is_lost(replica, ledger, database_away):
    settlements, request = await replica(), hold(ledger, "h1")
    ledger.down.add("release")
    database_away(True)
    await settlements.release(request.account_id, "h1", "not answered")
    with capture_logs() as logged:
        await settlements.stop(0.1)
    assert not [entry for entry in logged if "is lost" in entry["event"]]
    assert [entry["hold_id"] for entry in logged if "it lapses" in entry["event"]] == ["h1"]


async def test_row_that_cannot_be_read_holds_up_no_other(replica, ledger, engine, rows, execute):
    await keep(engine, hold(ledger, "h1"))
    await keep(engine, hold(ledger, "h2"))
    await execute("UPDATE outbox SET operation = '\\xff' WHERE hold_id = 'h1'")
    await (await replica()).deliver()
    assert list(ledger.settled) == ["h2"]
    assert [(row[0], row[3]) for row in await rows()] == [("h1", "UNREADABLE")]


async def test_killed_between_booking_and_forgetting_books_once(replica, ledger, engine, rows):
    """Each step done again by another replica, as after kill -9: claimed, booked, not forgotten."""
    request = hold(ledger, "h1")
    await keep(engine, request)
    store = OutboxStore(engine)
    claimed = await store.claim()
    assert [one.hold_id for one in claimed] == ["h1"]
    assert await store.claim() == []  # nobody else's for now
    ledger._settle(request)  # then it was killed
    async with engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE outbox SET due_at = now()")  # its claim is over
    await (await replica()).deliver()
    assert ledger.accounts["acme"].spent == 7
    assert await rows() == []


async def test_end_that_the_ledger_took_long_ago_is_forgotten(replica, ledger, engine, rows, monkeypatch):
    await keep(engine, hold(ledger, "h1"))
    monkeypatch.setattr(ledger, "_settle", lambda _: refusal(6, "RESULT_ARCHIVED"))
    await (await replica()).deliver()
    assert await rows() == []


async def test_kept_settlement_is_booked_once_and_forgotten(replica, ledger, engine, rows):
    settlements, request = await replica(), hold(ledger, "h1")
    await keep(engine, request, due_seconds=60)
    assert (await settlements.settle_kept(request)).available_nanos == 10 * USD - 7
    await settlements.deliver()
    assert await rows() == []
    assert [kind for kind, _ in ledger.log] == ["settle"]


@pytest.mark.parametrize("fault", ["down", "lose"])
async def test_kept_settlement_without_an_answer_is_delivered_later_and_books_once(  # noqa: PLR0917 (its needs)
    replica, ledger, engine, rows, execute, fault
):
    settlements, request = await replica(), hold(ledger, "h1")
    await keep(engine, request, due_seconds=60)
    ledger.down.update({"settle"} if fault == "down" else ())
    ledger.lose.update({"settle": 1} if fault == "lose" else {})
    assert await settlements.settle_kept(request) is None
    ledger.down.clear()
    await execute("UPDATE outbox SET due_at = now()")
    await settlements.deliver()
    assert ledger.accounts["acme"].spent == 7
    assert await rows() == []


async def test_kept_settlement_that_the_ledger_refuses_is_kept_for_an_operator(replica, ledger, engine, rows):
    request = hold(ledger, "h1")
    ledger.holds.clear()
    await keep(engine, request, due_seconds=60)
    assert await (await replica()).settle_kept(request) is None
    assert [(row[0], row[3]) for row in await rows()] == [("h1", "HOLD_NOT_FOUND")]


async def test_undelivered_is_tried_again_after_longer_and_longer(replica, ledger, engine, execute, proxy_database):
    settlements = await replica()
    await keep(engine, hold(ledger, "h1"))
    ledger.down.add("settle")
    waits = []
    for _ in range(9):
        await settlements.deliver()
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql("SELECT extract(epoch FROM due_at - now()) FROM outbox")
            waits.append(round(float(found.scalar_one()) + 0.4))
        await execute("UPDATE outbox SET due_at = now()")
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_age_of_the_oldest_undelivered_is_measured(replica, ledger, engine, execute):
    settlements = await replica()
    await keep(engine, hold(ledger, "h1"))
    await keep(engine, hold(ledger, "h2"))
    await execute("UPDATE outbox SET created_at = now() - interval '1 hour' WHERE hold_id = 'h1'")
    ledger.down.add("settle")
    await settlements.deliver()
    assert metric("tollkeeper_outbox_waiting") == 2
    assert 3600 <= metric("tollkeeper_outbox_oldest_seconds") < 3700
    ledger.down.clear()
    await execute("UPDATE outbox SET due_at = now()")
    await settlements.deliver()
    assert (metric("tollkeeper_outbox_waiting"), metric("tollkeeper_outbox_oldest_seconds")) == (0, 0)
