"""Runs pricing's benchmark: `python -m tests.bench.pricing [--quick]`.

Prints a table, then one line of JSON. The exit status is 0 unless something broke: it measures, it does not gate.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1.pricing_service_pb2_grpc import PricingServiceStub

from deploy.local import postgres
from deploy.local.ports import HOST
from deploy.local.process import StartFailedError
from services.kit.identity import Identity, Role, TokenSigner, make_keypair
from services.pricing.assembly import Parts
from services.pricing.servicer import PricingServicer
from services.pricing.settings import PricingSettings
from services.rating import cost
from tests.bench.pricing import calls
from tests.bench.pricing.echo import METHOD
from tests.bench.support.figures import median, percentile, rounded, spread
from tests.bench.support.processors import tree_seconds
from tests.bench.support.servers import BenchFailedError, durable_postgres, finished, listening, python_program
from tests.bench.support.tables import console, table

_MIGRATE_SECONDS = 60.0
_TOKEN_SECONDS = 3600
_OVERRIDES_SEEN_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, in each so many single calls and so many batches, one after another."""

    rounds: int
    singles: int
    batches: int


_DEFAULT, _QUICK = Plan(rounds=5, singles=1000, batches=20), Plan(rounds=2, singles=200, batches=5)


@dataclass(frozen=True)
class Measured:
    """One thing that is timed: what a call of it does, how often a round does it, and who works for it.

    `processor` gives the processor seconds that whoever does the work has taken so far.
    """

    name: str
    call: Callable[[], Any]
    times: int
    processor: Callable[[], float] = time.thread_time


@dataclass(frozen=True)
class Round:
    """What one round took: each call's seconds, and the processor seconds of a call."""

    seconds: list[float]
    processor_seconds: float


def _round(one: Measured) -> Round:
    seconds, before = [], one.processor()
    for _ in range(one.times):
        begun = time.perf_counter()
        one.call()
        seconds.append(time.perf_counter() - begun)
    return Round(seconds, (one.processor() - before) / one.times)


def _rounds(measured: Sequence[Measured], rounds: int) -> dict[str, list[Round]]:
    """Each round does each thing in turn, so that what disturbs the machine disturbs all of them alike."""
    for one in measured:
        _round(one)  # warm
    found: dict[str, list[Round]] = {one.name: [] for one in measured}
    for _ in range(rounds):
        for one in measured:
            found[one.name].append(_round(one))
    return found


@contextlib.contextmanager
def _pricing(folder: Path) -> Iterator[tuple[PricingSettings, str, int, Callable[[Role], str]]]:
    """A pricing service on a database of its own: its settings, address and pid, and what makes a role's token."""
    with contextlib.ExitStack() as stack:
        server, _ = stack.enter_context(durable_postgres(folder))
        url = postgres.create_database(server.url(), name="pricing", owner="pricing", password=server.password)
        private, jwks = make_keypair()
        keys = folder / "jwks.json"
        keys.write_text(json.dumps(jwks))
        env = {
            "TOLLKEEPER_PRICING_DATABASE_URL": url,
            "TOLLKEEPER_IDENTITY_JWKS_FILE": str(keys),
            "TOLLKEEPER_LOG_LEVEL": "warning",
        }
        finished(
            python_program("migrate", "services.pricing", "migrate", env=env),
            folder / "migrate.log",
            timeout_seconds=_MIGRATE_SECONDS,
        )

        def serving(port: int) -> Any:
            return python_program(
                "pricing", "services.pricing", "serve", env=env | {"TOLLKEEPER_PRICING_LISTEN": f"{HOST}:{port}"}
            )

        port, child = stack.enter_context(listening(serving, folder / "pricing.log"))
        signer = TokenSigner(private)
        settings = PricingSettings(database_url=url, identity_jwks_file=keys)
        yield (
            settings,
            f"{HOST}:{port}",
            child.record.pid,
            lambda role: signer.sign(Identity(role, subject="bench"), _TOKEN_SECONDS),
        )


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@dataclass(frozen=True)
class _Server:
    """A server under measurement: how to call it, and what it has taken of the processors."""

    call: Any
    pid: int

    def processor(self) -> float:
        return tree_seconds(self.pid)


def _measured(plan: Plan, parts: Parts, pricing: _Server, echo: _Server, token: str) -> list[Measured]:
    """All that is timed."""
    prices = list(parts.live.refresh().book.published_after(0))
    requests = calls.requests(prices, plan.singles)
    batch = pb.BatchCalculateCostsRequest(requests=calls.requests(prices, calls.LINES, seed=2))
    raw = batch.SerializeToString()
    cards = {(price.provider, price.model): price.card for price in prices}
    given = cycle([(cards[request.provider, request.model], calls.counts(request)) for request in requests])
    servicer = PricingServicer(parts.prices, parts.overrides, parts.repricer, None)
    own, remote, echoed = cycle(requests), cycle(requests), cycle([one.SerializeToString() for one in requests])
    metadata = _bearer(token)

    def arithmetic() -> None:
        card, usage = next(given)
        cost(card, usage, multiplier_millionths=1_500_000)

    def single() -> None:
        pricing.call.CalculateCost(next(remote), metadata=metadata)

    def many() -> None:
        pricing.call.BatchCalculateCosts(batch, metadata=metadata)

    many_name = f"BatchCalculateCosts of {calls.LINES}"
    return [
        Measured("arithmetic alone, as the proxy does it", arithmetic, plan.singles),
        Measured("CalculateCost in process", lambda: servicer.CalculateCost(next(own), None), plan.singles),
        Measured("bare gRPC echo", lambda: echo.call(next(echoed)), plan.singles, echo.processor),
        Measured("CalculateCost over gRPC", single, plan.singles, pricing.processor),
        Measured(f"{many_name} in process", partial(servicer.BatchCalculateCosts, batch, None), plan.batches),
        Measured(f"bare gRPC echo of {len(raw):,} bytes", partial(echo.call, raw), plan.batches, echo.processor),
        Measured(f"{many_name} over gRPC", many, plan.batches, pricing.processor),
    ]


def _figures(rounds: list[Round]) -> dict[str, float]:
    """Of all calls in milliseconds; `spread`: how far the rounds' medians lie apart, as a share."""
    everything = [seconds * 1000 for one in rounds for seconds in one.seconds]
    return {
        "p50_ms": rounded(percentile(everything, 50)),
        "p99_ms": rounded(percentile(everything, 99)),
        "processor_ms": rounded(median(one.processor_seconds * 1000 for one in rounds)),
        "spread": rounded(spread([median(one.seconds) for one in rounds]), 2),
    }


def _run(plan: Plan, folder: Path) -> dict[str, dict[str, float]]:
    with contextlib.ExitStack() as stack:
        settings, address, pid, token = stack.enter_context(_pricing(folder))
        echo_port, echo_child = stack.enter_context(
            listening(lambda port: python_program("echo", "tests.bench.pricing.echo", str(port)), folder / "echo.log")
        )
        parts = Parts(settings)
        stack.callback(parts.close)
        parts.live.refresh()
        stub = PricingServiceStub(stack.enter_context(grpc.insecure_channel(address)))
        echo = stack.enter_context(grpc.insecure_channel(f"{HOST}:{echo_port}")).unary_unary(METHOD)
        for request in calls.overrides(list(parts.live.current().book.published_after(0))):
            stub.SetPriceOverride(request, metadata=_bearer(token(Role.ADMIN)), timeout=_OVERRIDES_SEEN_SECONDS)
        servers = _Server(stub, pid), _Server(echo, echo_child.record.pid)
        found = _rounds(_measured(plan, parts, *servers, token(Role.SERVICE)), plan.rounds)
    return {name: _figures(rounds) for name, rounds in found.items()}


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pricing", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    plan = _QUICK if parser.parse_args().quick else _DEFAULT
    load_before = round(os.getloadavg()[0], 2)
    try:
        with tempfile.TemporaryDirectory(prefix="tollkeeper-bench-") as name:
            folder = Path(name)
            folder.chmod(0o711)  # under root, Postgres runs as another user, who has to pass through
            found = _run(plan, folder)
    except (BenchFailedError, StartFailedError) as failure:
        sys.stderr.write(f"the bench failed: {failure}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    rows = [
        (name, *(f"{one[key]:.3f}" for key in ("p50_ms", "p99_ms", "processor_ms")), f"{one['spread']:.0%}")
        for name, one in found.items()
    ]
    title = f"Pricing, one call at a time: {plan.rounds} rounds of {plan.singles} calls and {plan.batches} batches"
    console().print(table(title, ("what", "p50 ms", "p99 ms", "processor ms", "rounds apart"), rows))
    load = f"load {load_before} → {round(os.getloadavg()[0], 2)}"
    console().print(f"{os.cpu_count()} cores; {load}; one account in eight has prices of its own")
    console().print("Processor: a call's, of this process's thread, or of the server where there is one")
    sys.stdout.write(json.dumps({"bench": "pricing", "cores": os.cpu_count(), "figures": found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
