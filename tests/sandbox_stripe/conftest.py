"""Owns the sandbox Stripe that these tests speak to: one for the session, or one of a test's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from sandbox_stripe_process import Receiver, Sandbox, Shop, Start, start


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """The session's sandbox. Tests share it: each makes its own customers, prices and clocks."""
    running = start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def shop(sandbox: Sandbox) -> Shop:
    return Shop(sandbox, sandbox.client().v1)


@pytest.fixture
def start_sandbox() -> Iterator[Start]:
    """Starts sandboxes of the test's own, with the given arguments."""
    started: list[Sandbox] = []

    def begin(*arguments: str) -> Sandbox:
        started.append(start(*arguments))
        return started[-1]

    yield begin
    for running in started:
        running.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()
