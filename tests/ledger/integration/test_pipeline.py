"""A writer's connection against a real Postgres: each statement's rows, and what becomes of it when something fails."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import orjson
import psycopg
import pytest
import uvloop
from sqlalchemy import make_url

from services.kit.db import connection_string
from services.ledger.store import loading, writing
from services.ledger.store.columns import Columns
from services.ledger.store.pipeline import Connection, Statement
from tests.ledger.support.ledger_audit import rows

BEGIN, COMMIT = Statement("BEGIN"), Statement("COMMIT")
SAID = Statement("SELECT %s::text")
TWICE = Statement("SELECT %s::text || %s::text, '[1, {\"a\": null}]'::jsonb")
DIVIDED = Statement("SELECT 1 / %s::integer")
WRONG = Statement("SELECT no_such_column")
SLEPT = Statement("SELECT pg_sleep(60)")
ADVANCED = Statement("UPDATE feed_slots SET position = position + 1 WHERE slot = 0")


@pytest.fixture
async def connection(ledger_settings):
    async with await Connection.opened(connection_string(ledger_settings.database_url)) as connection:
        yield connection


@pytest.mark.parametrize("failure", [psycopg.OperationalError, asyncio.CancelledError])
async def test_connection_that_cannot_be_made_ready_is_closed(ledger_settings, failure):
    made = []

    class Failing(Connection):
        async def execute(self, *_arguments, **_words):
            made.append(self)
            raise failure

    with pytest.raises(failure):
        await Failing.opened(connection_string(ledger_settings.database_url))
    assert made[0].closed


async def test_each_statement_has_its_own_rows(connection):
    for _ in range(2):  # the second time all are prepared
        answers = await connection.ask((SAID, [b"one"]), None, (TWICE, [b"a", "\u00e4".encode()]), (SAID, [b"two"]))
        assert answers == [[("one",)], [], [("a\u00e4", [1, {"a": None}])], [("two",)]]


ODD = Columns(
    tuple(
        (kind, kind, kind) for kind in ("text", "json", "jsonb", "timestamptz", "bytea", "bigint", "integer", "boolean")
    )
)
ODD_VALUES = {
    "text": ["", 'a "b" \\ {c}, NULL', "ä\n€"],
    "json": ["[]", '{"a": "b \\"c\\" \\\\ {d}, ä"}', "null"],
    "jsonb": [[], {"a": 'b "c" \\ {d}, ä'}, [1, None]],
    "timestamptz": [None, datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)],
    "bytea": [b"", b"\0\xff", b"x" * 32],
    "bigint": [-(2**63), 0, 2**63 - 1],
    "integer": [-(2**31), 0, 2**31 - 1],
    "boolean": [True, False, True],
}


@pytest.mark.parametrize("picked", [[0, 1, 2], [2, 2], [0], [1]], ids=str)
async def test_arrays_arrive_as_they_were_written(connection, picked):
    objects = [SimpleNamespace(**{kind: ODD_VALUES[kind][at] for kind in ODD.names.split(", ")}) for at in picked]
    read = Statement(f"SELECT {ODD.selected} FROM unnest({ODD.unnest}) AS c({ODD.names})")
    (found,) = await connection.ask((read, ODD.arrays(objects)))
    written = [tuple(vars(one).values()) for one in objects]
    assert found == [(text, orjson.loads(document), *others) for text, document, *others in written]


async def test_nothing_is_done_after_a_statement_that_fails(connection, ledger_settings):
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.ask((BEGIN, ()), (ADVANCED, ()), (DIVIDED, [b"0"]), (COMMIT, ()))
    await connection.rollback()
    assert rows(ledger_settings.database_url, "SELECT position FROM feed_slots WHERE slot = 0") == [(0,)]
    assert (await connection.ask((DIVIDED, [b"1"]), (SAID, [b"still"])))[0] == [(1,)]


async def test_what_goes_together_is_one_transaction(connection, ledger_settings):
    position = "SELECT position FROM feed_slots WHERE slot = 0"
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.ask((ADVANCED, ()), (DIVIDED, [b"0"]), (ADVANCED, ()))
    assert rows(ledger_settings.database_url, position) == [(0,)]
    await connection.ask((ADVANCED, ()), (SAID, [b"in between"]), (ADVANCED, ()))
    assert rows(ledger_settings.database_url, position) == [(2,)]


async def test_commit_that_fails_is_told(connection):
    await connection.execute("CREATE TEMP TABLE one (number INTEGER UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        await connection.ask((Statement("INSERT INTO one VALUES (1), (1)"), ()), (SAID, [b"before the commit"]))
    assert await connection.ask((Statement("SELECT count(*) FROM one"), ())) == [[(0,)]]


async def test_statement_is_planned_once(connection):
    for number in range(12):
        await connection.ask((DIVIDED, [b"%d" % (number + 1)]))
    planned = await connection.execute("SELECT generic_plans, custom_plans FROM pg_prepared_statements")
    assert await planned.fetchall() == [(12, 0)]


def _of_batches():
    """Each statement of batches, and each part of the one that has parts, by its name."""
    for module in (loading, writing):
        for name, found in vars(module).items():
            if isinstance(found, Statement) and found.query.strip().startswith(
                (b"SELECT", b"WITH", b"INSERT", b"UPDATE")
            ):
                yield name, found.query.decode()
            if isinstance(found, writing._Part):
                place = [writing._PLACE] if found is writing._RECORDS else []
                yield f"{name}, many", writing._change((*place, found.many), "").query.decode()
                yield f"{name}, single", writing._change((*place, found.single), "").query.decode()
    yield "confirmed", writing._change((writing._CONFIRMED_ACCOUNT,), writing._CONFIRMED).query.decode()


async def test_batches_find_everything_by_keys_however_small_the_tables_are(connection):
    explained = dict(_of_batches())
    assert len(explained) > 30
    for name, query in explained.items():
        plan = [line for (line,) in await (await connection.execute(f"EXPLAIN (GENERIC_PLAN) {query}")).fetchall()]
        assert not [line for line in plan if "Seq Scan" in line], (name, plan)


async def test_statements_outlive_rollbacks_and_one_that_cannot_be_prepared(connection):
    await connection.ask((SAID, [b"prepared"]))
    with pytest.raises(psycopg.errors.UndefinedColumn):
        await connection.ask((BEGIN, ()), (TWICE, [b"a", b"b"]), (WRONG, ()))
    await connection.rollback()
    for _ in range(8):  # as often as makes psycopg prepare by itself, and then forget all with a rollback
        await connection.execute("SELECT 1")
    await connection.execute("ROLLBACK")
    assert await connection.ask((SAID, [b"here"])) == [[("here",)]]
    assert (await connection.ask((TWICE, [b"a", b"b"])))[0][0][0] == "ab"


async def test_what_neither_side_can_buffer_goes_both_ways(connection):
    large = b"x" * 20_000_000
    answers = await connection.ask(*((SAID, [large]) for _ in range(4)))
    assert [len(answer[0][0]) for answer in answers] == [len(large)] * 4


async def test_connection_whose_answer_was_not_waited_for_is_closed(connection):
    asking = asyncio.create_task(connection.ask((SAID, [b"one"]), (SLEPT, ())))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert connection.closed


async def test_connection_that_breaks_says_so_and_is_closed(connection, ledger_settings):
    rows(ledger_settings.database_url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
    with pytest.raises(psycopg.OperationalError):
        await connection.ask((SAID, [b"one"]))
    assert connection.closed


class Relay:
    """Stands between one client and Postgres, and resets the client: after so many bytes of an answer, or now."""

    def __init__(self, url):
        self._to = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._client = None
        self.bytes_left = 10**9
        self.url = self._to.set(host="127.0.0.1", port=self._listener.getsockname()[1]).render_as_string(
            hide_password=False
        )
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self):
        self._client, _ = self._listener.accept()
        with socket.create_connection((self._to.host, self._to.port)) as postgres:
            self._threads.append(threading.Thread(target=self._answered, args=(postgres,), daemon=True))
            self._threads[1].start()
            with contextlib.suppress(OSError):
                while asked := self._client.recv(65536):
                    postgres.sendall(asked)
            postgres.shutdown(socket.SHUT_RDWR)
            self._threads[1].join()

    def _answered(self, postgres):
        with contextlib.suppress(OSError):
            while told := postgres.recv(65536):
                self._client.sendall(told[: self.bytes_left])
                self.bytes_left -= len(told)
                if self.bytes_left <= 0:
                    self.reset()

    def reset(self):
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._client.shutdown(socket.SHUT_RD)  # whoever reads from it lets go
        self._client.close()

    def end(self):
        self._listener.close()
        self._threads[0].join(10)  # it may wait for a client that never came


@pytest.mark.parametrize(
    ("answered_bytes", "statements"),
    [(0, 1), (20, 1), (80, 3)],
    ids=["idle", "in an answer", "between answers"],
)
def test_connection_that_is_reset_is_not_waited_for_for_ever(ledger_settings, answered_bytes, statements):
    async def asked():
        connection = await Connection.opened(relay.url)
        assert await connection.ask((SAID, [b"one"])) == [[("one",)]]
        if answered_bytes:
            relay.bytes_left = answered_bytes
        else:
            relay.reset()
            await asyncio.sleep(0.05)
        two = [(SAID, [b"two"])] * statements
        with pytest.raises(psycopg.OperationalError):
            # The start of the answer is read when the reset has come, too.
            await asyncio.wait_for(connection.ask(*two, meanwhile=lambda: time.sleep(0.1)), 10)
        assert connection.closed

    relay = Relay(connection_string(ledger_settings.database_url))
    try:
        uvloop.run(asked())
    finally:
        relay.end()


def test_connection_that_postgres_ends_while_idle_is_not_waited_for_for_ever(ledger_settings):
    async def asked():
        connection = await Connection.opened(connection_string(ledger_settings.database_url))
        assert await connection.ask((SAID, [b"one"])) == [[("one",)]]
        rows(ledger_settings.database_url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        await asyncio.sleep(0.05)
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(connection.ask((SAID, [b"two"])), 10)
        assert connection.closed

    uvloop.run(asked())


async def test_own_statements_come_between_those_of_batches(connection):
    for _ in range(3):
        assert await connection.ask((SAID, [b"one"])) == [[("one",)]]
        assert await (await connection.execute("SELECT 2")).fetchall() == [(2,)]
        await connection.rollback()
