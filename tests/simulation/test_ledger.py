"""Two ledgers on one database, with kill -9 of each and of Postgres: every acknowledged write is there, none twice."""

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.ledger_machine import SETTINGS, machine_on, running_parts


@pytest.mark.timeout(300)
def test_ledgers_under_attack_keep_every_promise():
    with running_parts() as parts:
        bounded = settings(SETTINGS, max_examples=4, stateful_step_count=6)
        run_state_machine_as_test(machine_on(parts), settings=bounded)
