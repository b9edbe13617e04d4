"""Owns the parts of a ledger as processes that a test kills: a Postgres of its own, and ledgers on one database."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from deploy.local import ports, postgres
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Program
from services.kit.migrations import upgrade
from services.ledger.__main__ import MIGRATIONS

ROOT = Path(__file__).parents[3]
_numbers = itertools.count(1)


class Part:
    """One process of the suite, which can be killed and started again."""

    metrics = ""

    def __init__(self, program, port, log, stack):
        words = {"name": program.name, "argv": program.argv, "env": dict(program.env), "cwd": str(program.cwd)}
        self._words = json.dumps(words | {"user": program.user, "port": port, "log": str(log)})
        self._keeper = None
        stack.callback(self.kill)
        self.start()

    def start(self):
        deadline = time.monotonic() + 30
        while not self._started():  # a ledger does not start while Postgres recovers
            assert time.monotonic() < deadline, self._words

    def _started(self):
        keeper = [sys.executable, "-m", "tests.ledger.support.ledger_keeper"]
        self._keeper = subprocess.Popen(keeper, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._keeper.stdin.write(self._words + "\n")
        self._keeper.stdin.flush()
        told = self._keeper.stdout.readline()
        if not told:
            self._keeper.communicate(timeout=30)
            return False
        self._pid = int(told)
        return True

    def kill(self):
        """kill -9."""
        if self._keeper is not None and self._keeper.poll() is None:
            os.kill(self._pid, signal.SIGKILL)
            self._keeper.communicate(timeout=30)


def durable_postgres(folder, stack):
    """A Postgres that waits for the disk, with the ledger's schema; its process, and the database's URL."""
    # A folder of its own: tests share the one it lies in.
    name = f"durable-{next(_numbers)}"
    server = EmbeddedPostgres(folder=folder / name, port=ports.free_port(), password="secret", durable=True)
    server.initialise()
    part = Part(server.program(), server.port, folder / f"{name}.log", stack)
    deadline = time.monotonic() + 30
    while not server.ready() and time.monotonic() < deadline:
        time.sleep(0.05)
    url = postgres.create_database(server.url(), name="tollkeeper_ledger", owner="tollkeeper_ledger", password="ledger")
    upgrade(url, MIGRATIONS)
    return part, url


def replicas(count, url, jwks_file, folder, stack):
    """Ledgers on one database: of each its process and its address. Where its metrics are, its process knows."""
    made = []
    for number in range(count):
        port, metrics = ports.free_port(), f"127.0.0.1:{ports.free_port()}"
        environment = {
            "PATH": os.environ["PATH"],
            "TOLLKEEPER_LEDGER_LISTEN": f"127.0.0.1:{port}",
            "TOLLKEEPER_LEDGER_METRICS_LISTEN": metrics,
            "TOLLKEEPER_LEDGER_DATABASE_URL": url,
            "TOLLKEEPER_IDENTITY_JWKS_FILE": str(jwks_file),
            "TOLLKEEPER_LOG_LEVEL": "warning",
        }
        program = Program(
            name=f"ledger{number}",
            argv=(sys.executable, "-m", "services.ledger", "serve"),
            env=environment,
            cwd=ROOT,
        )
        part = Part(program, port, folder / f"ledger{number}.log", stack)
        part.metrics = f"http://{metrics}/metrics"
        made.append((part, f"127.0.0.1:{port}"))
    return made
