"""Answers of calls with an idempotency key: given again as they were, charged once, and read by nobody else."""

import asyncio
import dataclasses
import hashlib

import psycopg
import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.db import async_engine, connection_string
from services.kit.refusals import InvalidArgument
from services.proxy.answers import Answers, AnswerStore, Begun, KeptAnswer
from services.proxy.answers.model import Cipher, UnreadableError, slot_of
from services.proxy.errors import AnswerNotKept, AnswersUnavailable, IdempotencyConflict, IdempotencyInProgress
from services.proxy.settings import ProxySettings

SECRET = "tk_live_" + "s" * 40
BODY = b'{"choices":[{"message":{"content":"Paris, \xc3\xa9videmment"}}]}'
ANSWER = KeptAnswer((("x-tollkeeper-cost-credits", "6.5"), ("a", "1"), ("a", "2")), "application/json", BODY, 201)
PROMPT = hashlib.sha256(b"/v1/chat/completions\0the capital of France?").digest()
OTHER_PROMPT = hashlib.sha256(b"another").digest()


def settlement(hold_id="call-1"):
    return pb.Operation(settle=pb.SettleHoldRequest(account_id="acme", hold_id=hold_id, amount_nanos=7))


@pytest.fixture
async def engine(proxy_database):
    engine = async_engine(ProxySettings(database_url=proxy_database))
    yield engine
    await engine.dispose()


@pytest.fixture
def store(engine):
    return AnswerStore(engine, lease_seconds=30, ttl_seconds=86_400)


@pytest.fixture
def answers(store):
    return Answers(store, lease_seconds=30, sweep_seconds=60, max_bytes=1000)


@pytest.fixture
def another_proxy(store):
    return Answers(store, lease_seconds=30, sweep_seconds=60, max_bytes=1000)


@pytest.fixture
def sql(proxy_database):
    def run(statement):
        with psycopg.connect(connection_string(proxy_database)) as connection:
            found = connection.execute(statement)
            return found.fetchall() if found.description else []

    return lambda statement: asyncio.to_thread(run, statement)


async def begin(answers, call_id="call-1", *, name="once", prompt=PROMPT, secret=SECRET, key_id="key-1"):
    return await answers.begin(key_id, name, prompt, secret, call_id)


LAPSE = "UPDATE answers SET lease_until = now() - interval '1 second'"
TOMORROW = "UPDATE answers SET expires_at = now() - interval '1 second'"


async def test_repeat_gets_the_first_answer(answers, another_proxy):
    begun = await begin(answers)
    assert isinstance(begun, Begun)
    await begun.keep(ANSWER, settlement())
    for proxy in (answers, another_proxy):
        assert await begin(proxy, "call-2") == ANSWER


async def test_of_repeats_at_once_one_is_made_and_the_others_are_refused(answers, another_proxy):
    found = await asyncio.gather(
        *(begin((answers, another_proxy)[n % 2], f"call-{n}") for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(one, Begun) for one in found) == 1
    refusals = [one for one in found if isinstance(one, IdempotencyInProgress)]
    assert len(refusals) == 19
    assert refusals[0].retry_after_seconds == 1


@pytest.mark.parametrize("kept", [True, False])
async def test_other_request_with_the_same_key_is_refused(answers, sql, kept):
    begun = await begin(answers)
    if kept:
        await begun.keep(ANSWER, settlement())
    with pytest.raises(IdempotencyConflict):
        await begin(answers, "call-2", prompt=OTHER_PROMPT)
    await sql(LAPSE)
    with pytest.raises(IdempotencyConflict):
        await begin(answers, "call-2", prompt=OTHER_PROMPT)


async def test_idempotency_keys_of_other_api_keys_are_apart(answers):
    await (await begin(answers)).keep(ANSWER, settlement())
    assert isinstance(await begin(answers, "call-2", key_id="key-2"), Begun)
    assert isinstance(await begin(answers, "call-3", name="twice"), Begun)


@pytest.mark.parametrize("name", ["", "x" * 256, "line\nbreak", "nul\0"])
async def test_idempotency_key_that_is_none_is_refused_by_name(answers, name):
    with pytest.raises(InvalidArgument) as caught:
        await begin(answers, name=name)
    assert [violation.field for violation in caught.value.violations] == ["idempotency-key"]


async def test_idempotency_key_of_full_length_is_taken(answers):
    assert isinstance(await begin(answers, name="é" * 255), Begun)


async def test_failed_call_may_be_made_again(answers, sql):
    await (await begin(answers)).abandon()
    assert await sql("SELECT * FROM answers") == []
    assert isinstance(await begin(answers, "call-2", prompt=OTHER_PROMPT), Begun)


async def test_abandoning_after_keeping_has_no_effect(answers):
    begun = await begin(answers)
    await begun.keep(ANSWER, settlement())
    await begun.abandon()
    assert await begin(answers, "call-2") == ANSWER


async def test_request_of_a_killed_proxy_is_taken_over_when_its_lease_lapses(answers, another_proxy, sql):
    begun = await begin(answers)
    with pytest.raises(IdempotencyInProgress):
        await begin(another_proxy, "call-2")
    await sql(LAPSE)
    found = await asyncio.gather(*(begin(another_proxy, f"call-{n}") for n in range(2, 8)), return_exceptions=True)
    second = [one for one in found if isinstance(one, Begun)]
    assert len(second) == 1
    with pytest.raises(IdempotencyInProgress):  # it was not dead after all: it bills nothing
        await begun.keep(ANSWER, settlement())
    assert await sql("SELECT * FROM outbox") == []
    await begun.abandon()
    await second[0].keep(ANSWER, settlement("call-2"))
    assert await sql("SELECT hold_id FROM outbox") == [("call-2",)]
    assert await begin(answers, "call-9") == ANSWER


async def test_lease_of_a_running_call_is_renewed(answers, another_proxy, sql):
    begun = await begin(answers)
    other = await begin(another_proxy, "call-2", name="twice")
    await sql(LAPSE)
    await answers.renew()
    with pytest.raises(IdempotencyInProgress):
        await begin(another_proxy, "call-3")
    assert isinstance(await begin(answers, "call-4", name="twice"), Begun)  # not renewed by another proxy
    await begun.keep(ANSWER, settlement())
    await answers.renew()
    with capture_logs() as logged:
        await another_proxy.renew()
    assert [entry["call_id"] for entry in logged] == [other.call_id]


async def test_leases_are_renewed_in_the_background(store, sql, eventually):
    answers = Answers(store, lease_seconds=0.3, sweep_seconds=0.1, max_bytes=1000)
    await begin(answers)
    await begin(answers, "call-2", name="twice")
    await sql(LAPSE)
    await sql("UPDATE answers SET state = 'unkept', expires_at = now() WHERE call_id = 'call-2'")
    await answers.start()
    await eventually(lambda: sql("SELECT 1 FROM answers WHERE lease_until > now()"))
    await eventually(lambda: _none(sql("SELECT 1 FROM answers WHERE call_id = 'call-2'")))
    await answers.stop()


async def _none(rows):
    return not await rows


async def test_answer_and_settlement_are_kept_together(answers, sql):
    await (await begin(answers)).keep(ANSWER, settlement())
    assert await sql("SELECT state FROM answers") == [("done",)]
    assert await sql("SELECT hold_id, kind, due_at > now() + interval '2 seconds' FROM outbox") == [
        ("call-1", "settle", True)
    ]


async def test_without_its_settlement_no_answer_is_kept(answers, sql, monkeypatch):
    """The transaction breaks between the two; then it is done again."""
    begun = await begin(answers)
    await sql("ALTER TABLE outbox ADD CONSTRAINT broken CHECK (hold_id <> 'call-1')")
    with monkeypatch.context() as short:
        short.setattr("services.proxy.answers.service._KEEP_SECONDS", 0.3)
        with pytest.raises(AnswersUnavailable):
            await begun.keep(ANSWER, settlement())
    assert await sql("SELECT state, ciphertext FROM answers") == [("running", None)]
    assert await sql("SELECT * FROM outbox") == []
    await sql("ALTER TABLE outbox DROP CONSTRAINT broken")
    await begun.keep(ANSWER, settlement())
    assert await sql("SELECT hold_id FROM outbox") == [("call-1",)]


async def test_keeping_whose_commit_was_not_heard_of_is_done_once(answers, store, sql, monkeypatch):
    real, lost = store.keep, []

    async def heard_not(*arguments):
        assert await real(*arguments)
        lost.append(arguments)
        monkeypatch.setattr(store, "keep", real)
        raise OperationalError("COMMIT", {}, Exception("the connection is lost"))

    begun = await begin(answers)
    monkeypatch.setattr(store, "keep", heard_not)
    await begun.keep(ANSWER, settlement())
    assert len(lost) == 1
    assert await sql("SELECT hold_id FROM outbox") == [("call-1",)]
    assert await begin(answers, "call-2") == ANSWER


async def test_keeping_goes_on_where_its_call_is_cancelled(answers, sql):
    begun = await begin(answers)
    keeping = asyncio.create_task(begun.keep(ANSWER, settlement()))
    await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.wait([keeping])
    await answers.stop()
    assert await sql("SELECT count(*) FROM answers a, outbox o WHERE a.state = 'done' AND o.hold_id = a.call_id") == [
        (1,)
    ]


async def test_answer_too_large_is_charged_once_and_its_repeat_refused(answers, sql):
    large = dataclasses.replace(ANSWER, body=b"x" * 1001)
    with capture_logs() as logged:
        await (await begin(answers)).keep(large, settlement())
    assert [(entry["call_id"], entry["size_bytes"]) for entry in logged] == [("call-1", 1001)]
    assert await sql("SELECT hold_id FROM outbox") == [("call-1",)]
    assert await sql("SELECT ciphertext FROM answers") == [(None,)]
    for _ in range(2):
        with pytest.raises(AnswerNotKept, match="too large"):
            await begin(answers, "call-2")
    await sql(LAPSE)
    with pytest.raises(AnswerNotKept, match="too large"):
        await begin(answers, "call-2")


async def test_answer_that_cannot_be_read_is_not_made_and_charged_again(answers, sql):
    await (await begin(answers)).keep(ANSWER, settlement())
    await sql("UPDATE answers SET content_type = 'text/html'")
    with pytest.raises(AnswerNotKept, match="cannot be read"):
        await begin(answers, "call-2")


async def test_database_holds_nothing_that_can_be_read(answers, sql, proxy_database):
    large = dataclasses.replace(ANSWER, body=b"Paris, the secret " * 50)
    await (await begin(answers, name="order-4711-of-jane")).keep(large, settlement())
    rows = repr(await sql("SELECT * FROM answers")) + repr(await sql("SELECT answers::text FROM answers"))
    for text in (b"Paris", b"the secret", b"order-4711-of-jane", SECRET.encode(), PROMPT):
        assert text.decode("latin-1") not in rows
        assert text.hex() not in rows
        assert repr(text)[2:-1] not in rows


async def test_other_secret_reads_nothing(answers):
    slot = slot_of("key-1", "once")
    sealed = Cipher(slot, SECRET).seal("call-1", ANSWER)
    assert Cipher(slot, SECRET).open("call-1", sealed) == ANSWER
    for other, call_id in (
        (Cipher(slot, SECRET[:-1] + "x"), "call-1"),
        (Cipher(slot_of("key-1", "twice"), SECRET), "call-1"),
        (Cipher(slot_of("key-2", "once"), SECRET), "call-1"),
        (Cipher(slot, SECRET), "call-2"),
    ):
        with pytest.raises(UnreadableError):
            other.open(call_id, sealed)
    await (await begin(answers)).keep(ANSWER, settlement())
    with pytest.raises(IdempotencyConflict):
        await begin(answers, "call-2", secret=SECRET[:-1] + "x")


async def test_after_a_day_the_request_is_made_anew(answers, sql):
    await (await begin(answers)).keep(ANSWER, settlement())
    assert await sql("SELECT expires_at - created_at > interval '23 hours' FROM answers") == [(True,)]
    await sql(TOMORROW)
    begun = await begin(answers, "call-2", prompt=OTHER_PROMPT)
    assert isinstance(begun, Begun)
    assert await sql("SELECT state, ciphertext, call_id FROM answers") == [("running", None, "call-2")]


async def test_answers_past_their_day_are_deleted_and_no_others(answers, sql):
    for n in range(3):
        await (await begin(answers, f"call-{n}", name=f"n{n}")).keep(ANSWER, settlement(f"call-{n}"))
    await begin(answers, "call-3", name="running")
    await sql("UPDATE answers SET expires_at = now() - interval '1 second' WHERE call_id <> 'call-1'")
    assert await answers.sweep() == 2
    assert await sql("SELECT call_id FROM answers ORDER BY 1") == [("call-1",), ("call-3",)]
    await sql(LAPSE)
    assert await answers.sweep() == 1


async def test_deleting_is_bounded(answers, sql):
    await sql(
        "INSERT INTO answers (key_id, idempotency_sha256, request_mac, call_id, state, lease_until, expires_at)"
        " SELECT 'k', n::text::bytea, '', n::text, 'unkept', now(), now() FROM generate_series(1, 10500) n"
    )
    assert await answers.sweep() == 10_000
    assert await answers.sweep() == 500


async def test_without_its_database_no_call_is_begun(answers, engine, monkeypatch):
    async def away(*_):
        raise OperationalError("INSERT", {}, Exception("away"))

    monkeypatch.setattr(answers._store, "begin", away)
    with pytest.raises(AnswersUnavailable):
        await begin(answers)


async def test_abandoning_never_raises(answers, monkeypatch):
    async def away(*_):
        raise OperationalError("DELETE", {}, Exception("away"))

    begun = await begin(answers)
    monkeypatch.setattr(answers._store, "abandon", away)
    await begun.abandon()
