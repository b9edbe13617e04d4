"""Owns the simulation: Hypothesis says what clients do and which part is killed when, in a world of real processes."""

import asyncio
import contextlib
import itertools
import json
import random
import re
import tempfile
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from services.kit.identity import Identity, Role, TokenSigner, make_keypair
from tests.ledger.support.ledger_parts import durable_postgres, replicas
from tests.simulation.ledger_world import World

_numbers = itertools.count(1)
_REMEMBERED = re.compile(rb'^tollkeeper_ledger_batches_total\{accounts="remembered"\} (\S+)', re.MULTILINE)
VICTIMS = ("ledger0", "ledger1", "postgres")

# Nothing is made smaller or run again: processes do not repeat themselves. What failed is named by its seed.
SETTINGS = settings(
    phases=[Phase.generate], deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


@dataclass
class Parts:
    """Two ledgers and their Postgres, running."""

    killable: dict
    url: str
    addresses: list
    metadata: tuple


@contextlib.contextmanager
def running_parts():
    """The processes, from a folder of their own that goes with them."""
    with contextlib.ExitStack() as stack:
        # Under root Postgres runs as another user, which has to reach its folder.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollkeeper-simulation-")))
        folder.chmod(0o711)
        private, jwks = make_keypair()
        (folder / "jwks.json").write_text(json.dumps(jwks))
        token = TokenSigner(private).sign(Identity(Role.SERVICE, subject="simulation"), 24 * 3600)
        database, url = durable_postgres(folder, stack)
        ledgers = replicas(2, url, folder / "jwks.json", folder, stack)
        killable = {"postgres": database, **{f"ledger{n}": part for n, (part, _) in enumerate(ledgers)}}
        yield Parts(killable, url, [address for _, address in ledgers], (("authorization", f"Bearer {token}"),))


class LedgersUnderAttack(RuleBasedStateMachine):
    """Clients of two ledgers, any part of which may be killed at any moment."""

    parts: Parts
    # Over all runs: writes that were acknowledged, calls made again since a part was gone, and batches from memory of
    # ledgers that were not killed since.
    tally: Counter
    counted: Counter

    @initialize(home=st.sampled_from([0, 1, None]))
    def begin(self, home):
        self.loop = asyncio.new_event_loop()
        self.world = self.loop.run_until_complete(self._made(home))

    async def _made(self, home):
        world = World(self.parts.addresses, self.parts.metadata, next(_numbers), home)
        await world.open()
        return world

    @rule(seed=st.integers(0, 2**32 - 1), steps=st.integers(3, 10))
    def burst(self, seed, steps):
        self.loop.run_until_complete(self.world.burst(seed, steps))

    @rule(
        seed=st.integers(0, 2**32 - 1),
        victims=st.lists(st.sampled_from(VICTIMS), min_size=1, max_size=3),
    )
    def attack(self, seed, victims):
        self.loop.run_until_complete(self._attacked(seed, victims))

    async def _attacked(self, seed, victims):
        """Kill these one after the other at random moments, while clients go on."""
        chance = random.Random(seed)

        async def kill():
            for victim in victims:
                await asyncio.sleep(chance.uniform(0.0, 0.3))
                await asyncio.to_thread(self.parts.killable[victim].kill)
                await asyncio.sleep(chance.uniform(0.0, 0.2))
                await asyncio.to_thread(self.parts.killable[victim].start)

        await asyncio.gather(self.world.burst(seed, 10), kill())

    @rule()
    def look(self):
        self.loop.run_until_complete(self.world.look())

    def teardown(self):
        if not hasattr(self, "world"):
            return
        self.loop.run_until_complete(self.world.look())
        self.world.audit(self.parts.url)
        self.loop.run_until_complete(self.world.close())
        self.tally.update(acknowledged=self.world.acknowledged, retried=self.world.retried)
        for name in VICTIMS[:2]:
            self._count_remembered(name)
        self.loop.close()

    def _count_remembered(self, name):
        """Add how many more batches a ledger had from memory, or all where it began anew."""
        try:
            with urllib.request.urlopen(self.parts.killable[name].metrics, timeout=10) as answer:
                found = _REMEMBERED.search(answer.read())
        except OSError:  # it was killed, nobody has needed it since, and it is not back yet
            return
        count, before = int(float(found[1])) if found else 0, self.counted[name]
        self.tally.update(remembered=count - before if count >= before else count)
        self.counted[name] = count


def machine_on(parts):
    """The state machine of ledgers under attack, on these processes."""
    return type(
        "LedgersUnderAttackHere", (LedgersUnderAttack,), {"parts": parts, "tally": Counter(), "counted": Counter()}
    )
