"""Owns a ledger under test: its database, its processes, and what is measured of it."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.local import postgres
from deploy.local.ports import HOST
from deploy.local.postgres import EmbeddedPostgres
from services.kit.identity import Identity, Role, TokenSigner, make_keypair
from tests.bench.ledger import audit, books
from tests.bench.ledger.books import Books
from tests.bench.ledger.load import Job
from tests.bench.support.servers import finished, listening, python_program

# Beside the seconds that are measured: starting, making requests beforehand, reading answers afterwards.
_GRACE_SECONDS = 60.0
_MIGRATE_SECONDS = 60.0
_TOKEN_SECONDS = 4 * 3600


@dataclasses.dataclass(frozen=True)
class Client:
    """Starts the load's program; `folder` keeps its jobs, results and logs."""

    folder: Path

    def run(self, job: Job) -> dict[str, Any]:
        """One measurement. Raises BenchFailedError."""
        task, result = self.folder / "job.json", self.folder / "result.json"
        task.touch(mode=0o600)  # it holds a token
        task.write_text(json.dumps(dataclasses.asdict(job)))
        finished(
            python_program("load", "tests.bench.ledger.load", str(task), str(result)),
            self.folder / "load.log",
            timeout_seconds=job.seconds + job.warm_seconds + _GRACE_SECONDS,
        )
        found: dict[str, Any] = json.loads(result.read_text())
        return found


class Tested:
    """A ledger that runs, and its accounts. `operations` counts what it has answered since they were made."""

    def __init__(self, client: Client, job: Job, rows: Books) -> None:
        self.rows = rows
        self._client = client
        self._job = job
        self._runs = 0
        self._operations = 0
        self.entries_before = 0

    def open_accounts(self, count: int, settled_calls: int, told: Any) -> None:
        """Have the ledger open one account with so many calls behind it, and copy it `count` times."""
        bodies = [batch.hex() for batch in books.model_account(settled_calls)]
        self._client.run(dataclasses.replace(self._job, kind="given", bodies=bodies, pids={}))
        self.rows.copy(count, told)
        self.entries_before = audit.entries(self.rows)

    def measured(self, kind: str, **words: Any) -> dict[str, Any]:
        """One measurement of `kind` with the fields of Job that `words` names. Raises BenchFailedError."""
        self._runs += 1
        result = self._client.run(dataclasses.replace(self._job, kind=kind, run=f"run{self._runs}", **words))
        self._operations += result["operations"]
        return result

    def audited(self) -> str:
        """What the audit of all accounts found. Raises BenchFailedError where they do not add up."""
        return audit.require_sound(self.rows, entries_before=self.entries_before, operations=self._operations)


@contextlib.contextmanager
def ledger(name: str, *, server: EmbeddedPostgres, postmaster: int, folder: Path, replicas: int) -> Iterator[Tested]:
    """A ledger of `replicas` processes on a migrated database of its own, for the length of a `with` block."""
    database = f"ledger_{name}"
    url = postgres.create_database(server.url(), name=database, owner=database, password=server.password)
    private, jwks = make_keypair()
    keys = folder / f"{name}.jwks.json"
    keys.write_text(json.dumps(jwks))
    settings = {
        "TOLLKEEPER_LEDGER_DATABASE_URL": url,
        "TOLLKEEPER_IDENTITY_JWKS_FILE": str(keys),
        "TOLLKEEPER_LOG_LEVEL": "warning",
    }
    finished(
        python_program("migrate", "services.ledger", "migrate", env=settings),
        folder / "migrate.log",
        timeout_seconds=_MIGRATE_SECONDS,
    )
    with contextlib.ExitStack() as stack:
        served = [
            stack.enter_context(
                listening(
                    lambda port: python_program(
                        "ledger",
                        "services.ledger",
                        "serve",
                        env=settings | {"TOLLKEEPER_LEDGER_LISTEN": f"{HOST}:{port}"},
                    ),
                    folder / f"{name}-{number}.log",
                )
            )
            for number in range(replicas)
        ]
        job = Job(
            kind="",
            run="",
            addresses=[f"{HOST}:{port}" for port, _ in served],
            pids={"ledger": [child.record.pid for _, child in served], "postgres": [postmaster]},
            token=TokenSigner(private).sign(Identity(Role.SERVICE, subject="bench"), _TOKEN_SECONDS),
        )
        yield Tested(Client(folder), job, Books(server.url(database)))
