"""Simulates ledgers under attack for as long as asked: `python -m tests.simulation [--seconds N] [--seed S]`.

Prints the seed of each run. The same seed gives the same choices, not the same timing: processes are real.
"""

import argparse
import secrets
import sys
import time

from hypothesis import seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.ledger_machine import SETTINGS, machine_on, running_parts

# Of each seed. Hypothesis's first is always the simplest there is.
EXAMPLES = 6


def main():
    """Run until the time is over; the exit status is 1 where something did not hold."""
    parser = argparse.ArgumentParser(description="Ledgers under attack, held against their shadow.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="run once, with this seed")
    chosen = parser.parse_args()
    deadline = time.monotonic() + chosen.seconds
    runs = 0
    with running_parts() as parts:
        while runs == 0 or (chosen.seed is None and time.monotonic() < deadline):
            number = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed
            print(f"seed {number}", flush=True)
            machine = seed(number)(machine_on(parts))
            run_state_machine_as_test(
                machine, settings=settings(SETTINGS, max_examples=EXAMPLES, stateful_step_count=15)
            )
            print(f"  held: {dict(machine.tally)}", flush=True)
            runs += 1
    print(f"{runs} runs, everything held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
