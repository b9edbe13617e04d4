"""What is remembered of a lookup is never older than its lifetime, and bounded."""

import asyncio

import pytest

from services.kit.refusals import StorageUnavailable
from services.proxy.cache import LookupCache


class Source:
    def __init__(self, **values):
        self.values, self.asked, self.gate = values, 0, None

    async def load(self, key):
        self.asked += 1
        found = self.values.get(key)  # read now, answered later
        if self.gate is not None:
            await self.gate.wait()
        return found


def cache(source, lifetime=10.0, entries=100):
    return LookupCache(source.load, lifetime_seconds=lifetime, max_entries=entries)


async def test_lifetime_counts_from_the_question_not_from_the_answer():
    source = Source(a=1)
    source.gate = asyncio.Event()
    remembered = cache(source, lifetime=0.1)
    asking = asyncio.ensure_future(remembered.get("a"))
    await asyncio.sleep(0.15)
    source.gate.set()
    assert await asking == 1
    assert remembered.remembered("a") is None


async def test_lookups_at_once_ask_once():
    source = Source(a=1)
    remembered = cache(source)
    assert await asyncio.gather(*(remembered.get("a") for _ in range(50))) == [1] * 50
    assert await remembered.get("a") == 1
    assert source.asked == 1


async def test_caller_that_gives_up_does_not_fail_the_others():
    source = Source(a=1)
    source.gate = asyncio.Event()
    remembered = cache(source)
    first, second = (asyncio.ensure_future(remembered.get("a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    source.gate.set()
    assert await second == 1


async def test_answer_on_its_way_when_forgotten_is_not_remembered():
    source = Source(a=1)
    source.gate = asyncio.Event()
    remembered = cache(source)
    asking = asyncio.ensure_future(remembered.get("a"))
    await asyncio.sleep(0.01)
    source.values["a"] = 2
    remembered.forget("a")
    source.gate.set()
    await asking
    assert await remembered.get("a") == 2


async def test_failure_is_not_remembered():
    async def load(_key):
        raise OSError

    remembered = LookupCache(load, lifetime_seconds=10, max_entries=10)
    for _ in range(2):
        with pytest.raises(OSError):  # noqa: PT011
            await remembered.get("a")


async def test_guesses_do_not_push_out_what_is_known():
    source = Source(a=1)
    remembered = cache(source, entries=10)
    await remembered.get("a")
    for number in range(100):
        assert await remembered.get(f"guess-{number}") is None
    assert remembered.remembered("a") == 1
    assert len(remembered._absent) <= 10


async def test_what_is_known_is_bounded():
    source = Source(**{str(number): number for number in range(100)})
    remembered = cache(source, entries=10)
    for number in range(100):
        await remembered.get(str(number))
    assert len(remembered._known) == 10
    assert remembered.remembered("99") == 99


async def test_everything_is_forgotten_what_is_on_its_way_too():
    source = Source(a=1, b=2)
    remembered = cache(source)
    await remembered.get("a")
    await remembered.get("absent")
    source.gate = asyncio.Event()
    asking = asyncio.ensure_future(remembered.get("b"))
    await asyncio.sleep(0.01)
    source.values.update(a=10, b=20, absent=30)
    remembered.forget_all()
    source.gate.set()
    await asking
    assert [await remembered.get(name) for name in ("a", "b", "absent")] == [10, 20, 30]


async def test_lookup_that_gets_no_answer_is_refused_and_the_next_one_asks_anew():
    source = Source(a=1)
    source.gate = asyncio.Event()
    remembered = LookupCache(source.load, lifetime_seconds=10.0, max_entries=100, load_seconds=0.05)
    refused = await asyncio.gather(*(remembered.get("a") for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in refused] == [StorageUnavailable] * 3
    assert source.asked == 1
    hanging, source.gate = source.gate, None
    assert await remembered.get("a") == 1
    assert source.asked == 2
    hanging.set()
