"""Owns the event loop: which one runs, and cancellation that a library has swallowed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


def run_async(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine function in a new event loop, uvloop's where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 (only the data plane's extras install it)

        factory: Any = uvloop.new_event_loop
    except ImportError:
        factory = None

    async def finished() -> None:
        await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(finished())


def raise_if_cancelled() -> None:
    """Raise CancelledError where the running task was cancelled, and what it waited for has forgotten that.

    Libraries do where an answer comes at that moment: pyreqwest, and what waits by `asyncio.wait_for` in Python 3.11,
    as psycopg does.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
