"""Owns what is measured, in which order and for how long."""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.local.process import Child
from tests.bench.gateway import calls, envoys
from tests.bench.gateway.client import Client
from tests.bench.gateway.load import Job
from tests.bench.gateway.suite import Tested
from tests.bench.support.servers import listening, python_program

MANY = 32
AT_ONCE = (1, MANY)

# By name: the results of its rounds in order.
Figures = dict[str, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Rounds, and the seconds of each measurement of unary calls, of streams, and before each."""

    rounds: int
    unary_seconds: float
    stream_seconds: float
    warm_seconds: float


DEFAULT = Plan(rounds=4, unary_seconds=3, stream_seconds=2, warm_seconds=0.6)
QUICK = Plan(rounds=1, unary_seconds=1.5, stream_seconds=1, warm_seconds=0.4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What is called: its name, how to reach it, and who works for a call of it."""

    name: str
    job: Job
    streams: bool = True


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[tuple[int, Child]]:
    """The provider for the length of a `with` block: its port and process."""
    with listening(
        lambda port: python_program("upstream", "tests.bench.gateway.upstream", str(port)), folder / "upstream.log"
    ) as found:
        yield found


@contextlib.contextmanager
def targets(folder: Path, tested: Tested, provider: Child) -> Iterator[list[Target]]:
    """All that is called, in the order of a round: the ceiling comes right before ours."""
    provider_pid = {"upstream": [provider.record.pid]}
    with contextlib.ExitStack() as stack:
        echo_port, echo = stack.enter_context(
            listening(lambda port: python_program("echo", "tests.bench.gateway.echo", str(port)), folder / "echo.log")
        )

        def echoed(running: Callable[[Path, int], Any]) -> Job:
            port, child = stack.enter_context(running(folder, echo_port))
            return Job(port=port, pids={"envoy": [child.record.pid], "echo": [echo.record.pid]})

        whole = tested.pids | provider_pid
        without_envoy = {part: pids for part, pids in whole.items() if part != "envoy"}
        proxy_port = tested.local.port("proxy")
        yield [
            Target(name="direct", job=Job(port=tested.upstream_port, path=calls.DIRECT_PATH, pids=provider_pid)),
            Target(name="ceiling", job=echoed(envoys.bare)),
            Target(name="ours", job=Job(port=tested.local.gateway_port, key=tested.key, pids=whole)),
            Target(name="edge", job=echoed(envoys.as_gateway), streams=False),
            Target(
                name="grpc",
                job=Job(port=proxy_port, form="grpc", key=tested.key, pids=without_envoy),
                streams=False,
            ),
        ]


def through_gateway(found: Sequence[Target]) -> Target:
    """The one of them that is ours."""
    return next(target for target in found if target.name == "ours")


def name_of(target: str, kind: str, at_once: int) -> str:
    """A measurement's name: `ours_unary_32`."""
    return f"{target}_{kind}_{at_once}"


def run(plan: Plan, client: Client, found: Sequence[Target], told: Callable[[str], None]) -> Figures:
    """All rounds, each with each target in turn, so that what disturbs the machine disturbs all of them alike."""
    figures: Figures = defaultdict(list)
    ours = through_gateway(found)
    for stream in (False, True):  # what is done once, at a first call, is no part of a round
        client.run(dataclasses.replace(ours.job, stream=stream, at_once=MANY, seconds=1.0, warm_seconds=1.0))
    for number in range(plan.rounds):
        told(f"round {number + 1} of {plan.rounds}")
        for kind, seconds in (("unary", plan.unary_seconds), ("stream", plan.stream_seconds)):
            for at_once in AT_ONCE:
                for target in found:
                    if kind == "stream" and not target.streams:
                        continue
                    job = dataclasses.replace(
                        target.job,
                        stream=kind == "stream",
                        at_once=at_once,
                        seconds=seconds,
                        warm_seconds=plan.warm_seconds,
                    )
                    figures[name_of(target.name, kind, at_once)].append(client.run(job))
    return figures


def answered(figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    """The calls of a plan that were answered by the suite."""
    ours = (rounds for name, rounds in figures.items() if name.partition("_")[0] in {"ours", "grpc"})
    return sum(result["calls"] for rounds in ours for result in rounds)
