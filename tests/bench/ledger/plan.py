"""Owns what is measured, in which order and for how long."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from deploy.local.ports import HOST
from tests.bench.ledger import books, echo
from tests.bench.ledger.load import Job
from tests.bench.ledger.pgbench import Pgbench
from tests.bench.ledger.tested import Client, Tested

BATCH = 256
MEASURED_ACCOUNTS = 10_000
# Many at once is what a proxy does with its calls' holds where it does not gather them.
MANY = 64
# More than any one client gets answered.
_UNARY_A_SECOND = 8_000
_FIRST_GUESS_A_SECOND = 12_000
# Made beforehand, as a share of what is expected: where a round is faster than that it ends a little early.
_SPARE = 1.5

Figures = dict[str, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Rounds, the seconds of each measurement, and which numbers of batches under way are tried."""

    rounds: int
    pgbench_seconds: int
    echo_seconds: float
    apply_seconds: float
    hot_seconds: float
    unary_seconds: float
    trial_seconds: float
    warm_seconds: float
    in_flight: tuple[int, ...]


DEFAULT = Plan(
    rounds=5,
    pgbench_seconds=4,
    echo_seconds=2,
    apply_seconds=4,
    hot_seconds=3,
    unary_seconds=2.5,
    trial_seconds=3,
    warm_seconds=1,
    in_flight=(2, 4, 8),
)
QUICK = Plan(
    rounds=1,
    pgbench_seconds=2,
    echo_seconds=1,
    apply_seconds=2,
    hot_seconds=1.5,
    unary_seconds=1,
    trial_seconds=0.5,
    warm_seconds=0.4,
    in_flight=(4,),
)


@dataclasses.dataclass(frozen=True)
class Echo:
    """The bare echo, as the load's program reaches it."""

    client: Client
    port: int
    pid: int

    def measured(self, at_once: int, seconds: float, warm_seconds: float) -> dict[str, Any]:
        """Calls a second and how long they took."""
        job = Job(
            kind="echo",
            run="echo",
            method=echo.METHOD,
            addresses=[f"{HOST}:{self.port}"],
            at_once=at_once,
            seconds=seconds,
            warm_seconds=warm_seconds,
            at_most=int(_UNARY_A_SECOND * (seconds + warm_seconds)),
            pids={"echo": [self.pid]},
        )
        return self.client.run(job)


@dataclasses.dataclass
class Side:
    """One ledger, the accounts that are measured of it, and how its figures are named.

    `all_accounts`: all that it has, where those measured are only some of them.
    """

    name: str
    tested: Tested
    accounts: Sequence[str]
    all_accounts: Sequence[str] = ()
    in_flight: int = 0
    apply_a_second: float = _FIRST_GUESS_A_SECOND

    def applied(self, plan: Plan, accounts: Sequence[str], seconds: float) -> dict[str, Any]:
        """Batches of half holds, half settlements."""
        expected = self.apply_a_second * (seconds + plan.warm_seconds) * _SPARE
        return self.tested.measured(
            "apply",
            accounts=list(accounts),
            at_once=self.in_flight,
            batch=BATCH,
            seconds=seconds,
            warm_seconds=plan.warm_seconds,
            at_most=int(expected) + 4 * BATCH * self.in_flight,
        )

    def held(self, plan: Plan, at_once: int) -> dict[str, Any]:
        """Unary CreateHold."""
        return self.tested.measured(
            "hold",
            accounts=list(self.accounts),
            at_once=at_once,
            seconds=plan.unary_seconds,
            warm_seconds=plan.warm_seconds,
            at_most=int(_UNARY_A_SECOND * (plan.unary_seconds + plan.warm_seconds)),
        )


def try_in_flight(plan: Plan, side: Side) -> dict[int, float]:
    """Operations a second at each number of batches under way; the best is kept. Warms everything up, too."""
    rates = {}
    for side.in_flight in plan.in_flight:
        rates[side.in_flight] = side.applied(plan, side.accounts, plan.trial_seconds)["rate"]
        side.apply_a_second = max(rates.values())
    side.in_flight = max(rates, key=lambda number: rates[number])
    return rates


def run(plan: Plan, pgbench: Pgbench, bare: Echo, sides: Sequence[Side], told: Callable[[str], None]) -> Figures:
    """All rounds; of each measurement, by name, the results of the rounds in order.

    What is compared is measured one after the other: on a shared machine each second is another one.
    """
    figures: Figures = defaultdict(list)
    for number in range(plan.rounds):
        told(f"round {number + 1} of {plan.rounds}")
        figures["pgbench_plain"].append(pgbench.measured("plain", plan.pgbench_seconds))
        for side in sides:
            figures[f"{side.name}_apply"].append(side.applied(plan, side.accounts, plan.apply_seconds))
        figures["pgbench_pipelined"].append(pgbench.measured("pipelined", plan.pgbench_seconds))
        for side in sides:
            hot = [random.choice(side.accounts)]
            figures[f"{side.name}_hot"].append(side.applied(plan, hot, plan.hot_seconds))
            if side.all_accounts:
                figures[f"{side.name}_apply_all"].append(side.applied(plan, side.all_accounts, plan.apply_seconds))
        for at_once in (MANY, 1):
            figures[f"echo_{at_once}"].append(bare.measured(at_once, plan.echo_seconds, plan.warm_seconds))
            for side in sides:
                figures[f"{side.name}_hold_{at_once}"].append(side.held(plan, at_once))
    return figures


def drawn(accounts: int) -> list[str]:
    """The accounts that are measured: all, or as many as are, drawn from all."""
    numbers = range(1, accounts + 1)
    chosen = numbers if accounts <= MEASURED_ACCOUNTS else random.sample(numbers, MEASURED_ACCOUNTS)
    return [books.account_id(number) for number in chosen]
