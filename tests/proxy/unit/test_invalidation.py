"""What is published of a change, what is read of it, and that a change is told whatever becomes of who tells it."""

import asyncio
import contextlib
import hashlib
import itertools
import types

import pytest
import redis.exceptions
import structlog.testing

from services.proxy import invalidation
from services.proxy.invalidation import Announcer, EntitlementChanged, KeyChanged, Listener, packed, unpacked

DIGEST = hashlib.sha256(b"tk_live_x").digest()
KEY = KeyChanged("key-1", DIGEST)


class Client:
    """A Redis that takes messages when it is let, or fails with `error`, so many `times` or always."""

    def __init__(self, error=None, times=None):
        self.error, self.times, self.gate, self.published = error, times, asyncio.Event(), []

    async def publish(self, channel, message):
        await self.gate.wait()
        if self.error is not None and self.times != 0:
            self.times = None if self.times is None else self.times - 1
            raise self.error
        self.published.append((channel, message))


class QuietRedis:
    """A Redis on whose channel nothing is said; it answers pings, or not. Waiting for it takes no time.

    Five seconds of the loop's are 4.99 or 5.02 of the clock's: a timer counts from when its turn of the loop began.
    """

    def __init__(self, monkeypatch, *, answers):
        self.answers, self.pings, self.answered, self.now = answers, 0, 0, 0.0
        self._taken = itertools.cycle([4.99, 5.02])
        # For who would look at the clock all the same.
        clock = types.SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(invalidation, "time", clock, raising=False)

    def pubsub(self):
        return contextlib.nullcontext(self)

    async def subscribe(self, channel):
        assert channel == invalidation.CHANNEL

    async def ping(self):
        self.pings += 1

    async def get_message(self, timeout):  # noqa: ASYNC109 (as the client library has it)
        assert timeout == 5
        if self.answers and self.answered < self.pings:
            self.answered += 1
            if self.answered == 20:
                raise asyncio.CancelledError
            return {"type": "pong", "data": b""}
        self.now += next(self._taken)
        return None


class Memory:
    def __init__(self):
        self.forgotten = []

    def forget(self, *what):
        self.forgotten.append(what)

    def forget_all(self):
        self.forgotten.append("all")


@pytest.mark.parametrize("change", [KEY, EntitlementChanged("acme")], ids=["key", "entitlement"])
def test_what_is_published_is_read_as_it_was(change):
    assert unpacked(packed(change)) == change


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"nonsense",
        b"{}",
        b"[]",
        b'"key"',
        b'{"key":"key-1"}',
        b'{"key":"key-1","sha256":null}',
        b'{"key":"key-1","sha256":"xyz"}',
        b'{"entitlement":["acme"]}',
        b'{"price":"gpt-4o"}',
        b"\xff\xfe",
        b"[" * 900,
        b'{"entitlement":"' + b"a" * 2000 + b'"}',
    ],
)
def test_what_is_not_understood_is_no_change(message):
    assert unpacked(message) is None


def test_fields_of_a_later_release_are_passed_over():
    assert unpacked(b'{"entitlement":"acme","why":"plan"}') == EntitlementChanged("acme")


async def test_each_message_is_taken_in_as_what_it_is():
    known, entitlements = Memory(), Memory()
    listener = Listener(None, known, entitlements)
    with structlog.testing.capture_logs() as logs:
        for kind, content in (
            ("subscribe", 1),
            ("message", packed(KEY)),
            ("message", packed(EntitlementChanged("acme"))),
            ("message", b"nonsense"),
            ("pong", b""),
        ):
            listener._take_in(kind, content)
    assert known.forgotten == ["all", ("key-1", DIGEST)]
    assert entitlements.forgotten == ["all", ("acme",)]
    assert [(line["log_level"], line["event"]) for line in logs] == [("warning", "an invalidation was not understood")]


async def test_change_is_told_although_its_caller_has_gone():
    client = Client()
    telling = asyncio.create_task(Announcer(client).announce(KEY))
    await asyncio.sleep(0)
    telling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await telling
    client.gate.set()
    async with asyncio.timeout(10):
        while not client.published:  # noqa: ASYNC110 (a list tells nobody)
            await asyncio.sleep(0.001)
    assert client.published == [(invalidation.CHANNEL, packed(KEY))]


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.ConnectionError("gone"),
        redis.exceptions.ResponseError("NOPERM"),
        OSError(),
        TimeoutError(),
        RuntimeError("the handler is closed"),
        ValueError(),
    ],
    ids=["connection", "response", "system", "timeout", "reset", "unforeseen"],
)
async def test_failure_is_never_the_callers_and_is_logged_once(error):
    client = Client(error)
    client.gate.set()
    announcer = Announcer(client)
    with structlog.testing.capture_logs() as logs:
        await announcer.announce(KEY)
        await announcer.announce(KEY)
        client.error = None
        await announcer.announce(KEY)
    assert [line["log_level"] for line in logs] == ["error", "info"]
    assert len(client.published) == 1


@pytest.mark.parametrize(
    "error", [redis.exceptions.ConnectionError("gone"), RuntimeError("the handler is closed")], ids=["closed", "reset"]
)
async def test_connection_that_broke_while_idle_costs_no_change(error):
    client = Client(error, times=1)
    client.gate.set()
    with structlog.testing.capture_logs() as logs:
        await Announcer(client).announce(KEY)
    assert len(client.published) == 1
    assert not logs


async def test_redis_that_takes_its_time_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(invalidation, "_ANNOUNCE_SECONDS", 0.01)
    client = Client()  # whose gate never opens
    await Announcer(client).announce(KEY)
    assert not client.published


async def test_redis_that_has_nothing_to_say_is_not_taken_for_dead(monkeypatch):
    quiet = QuietRedis(monkeypatch, answers=True)
    with pytest.raises(asyncio.CancelledError):
        await Listener(None, Memory(), Memory())._listen(quiet)
    assert quiet.answered == 20


async def test_redis_that_answers_no_ping_is_taken_for_dead(monkeypatch):
    mute = QuietRedis(monkeypatch, answers=False)
    with pytest.raises(TimeoutError):
        await Listener(None, Memory(), Memory())._listen(mute)
    assert mute.pings == 1


async def test_nobody_is_told_where_there_is_no_redis():
    await Announcer(None).announce(KEY)
    listener = Listener(None, Memory(), Memory())
    await listener.start()
    await listener.stop()
