"""Whoever has a script run in Redis is answered, whatever fails."""

import asyncio
from types import SimpleNamespace

import pytest
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from services.proxy.scripts import Script, Scripts


class Pool:
    """A pool whose connections cannot be had, for a reason that nobody has thought of."""

    connection_kwargs = {}  # noqa: RUF012 (as a redis-py pool has it)

    async def get_connection(self):
        raise ValueError("unforeseen")


async def test_failure_that_nobody_has_thought_of_is_told_to_all_as_redis_own():
    scripts = Scripts(SimpleNamespace(connection_pool=Pool()))
    script = Script("return 1")
    with capture_logs() as logged:
        asked = [scripts.run(script, ["key"], [1]) for _ in range(3)]
        told = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
    assert [type(one) for one in told] == [RedisError] * 3
    assert [line["log_level"] for line in logged] == ["error"]
    with pytest.raises(RedisError):
        await asyncio.wait_for(scripts.run(script, ["key"], [1]), 10)
