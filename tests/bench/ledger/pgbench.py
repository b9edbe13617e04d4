"""Owns the first anchor: pgbench with one UPDATE and one INSERT a transaction, at its best."""

import re
from dataclasses import dataclass
from pathlib import Path

import psycopg

from deploy.local.postgres import EmbeddedPostgres, binaries
from deploy.local.process import Program
from tests.bench.support import processors
from tests.bench.support.servers import BenchFailedError, finished

CLIENTS = 32
THREADS = 2
ACCOUNTS = 10_000
_DATABASE = "pgbench"
_GRACE_SECONDS = 30.0

# Room on each page, so that updates touch no index, as the ledger's accounts have it.
_TABLES = f"""
    CREATE TABLE accounts (account_id BIGINT PRIMARY KEY, balance BIGINT NOT NULL) WITH (fillfactor = 60);
    INSERT INTO accounts SELECT n, 0 FROM generate_series(1, {ACCOUNTS}) AS n;
    CREATE TABLE entries (
        entry_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        account_id BIGINT NOT NULL,
        amount BIGINT NOT NULL,
        created_at TIMESTAMPTZ NOT NULL
    );
"""
_STATEMENTS = """\
UPDATE accounts SET balance = balance + :amount WHERE account_id = :account;
INSERT INTO entries (account_id, amount, created_at) VALUES (:account, :amount, now());
"""
_VARIABLES = f"""\
\\set account random(1, {ACCOUNTS})
\\set amount random(1, 1000000)
"""
# The plain form waits for each statement's answer; the other sends the transaction in one go, as the ledger does.
_PLAIN = f"{_VARIABLES}BEGIN;\n{_STATEMENTS}COMMIT;\n"
_PIPELINED = f"{_VARIABLES}\\startpipeline\nBEGIN;\n{_STATEMENTS}COMMIT;\n\\endpipeline\n"


@dataclass(frozen=True)
class Pgbench:
    """pgbench against a database of its own in the bench's Postgres."""

    server: EmbeddedPostgres
    postmaster: int
    folder: Path

    def prepare(self) -> None:
        """Make its database, tables and scripts."""
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {_DATABASE}")
        with psycopg.connect(self.server.url(_DATABASE), autocommit=True) as connection:
            connection.execute(_TABLES)
            connection.execute("VACUUM ANALYZE")
        self._script("plain").write_text(_PLAIN)
        self._script("pipelined").write_text(_PIPELINED)

    def measured(self, form: str, seconds: int) -> dict[str, object]:
        """Transactions a second in `form` (`plain` or `pipelined`), and which cores were busy."""
        log = self.folder / "pgbench.log"
        before, own = processors.read({"postgres": [self.postmaster]}), processors.ended_seconds()
        finished(self._program(form, seconds), log, timeout_seconds=seconds + _GRACE_SECONDS)
        after = processors.read({"postgres": [self.postmaster]})
        client = (processors.ended_seconds() - own) / (after.at - before.at)
        said = log.read_text()
        rate = re.search(r"^tps = ([0-9.]+)", said, re.MULTILINE)
        failed = re.search(r"failed transactions: (\d+)", said)
        if rate is None or (failed is not None and int(failed[1])):
            raise BenchFailedError(f"pgbench said:\n{said}")
        cores = processors.cores(before, after)
        others = max(0.0, cores["others"] - client)
        return {"rate": float(rate[1]), "cores": cores | {"client": client, "others": others}}

    def _script(self, form: str) -> Path:
        return self.folder / f"pgbench-{form}.sql"

    def _program(self, form: str, seconds: int) -> Program:
        server = self.server
        options = [
            *("--client", str(CLIENTS), "--jobs", str(THREADS), "--protocol", "prepared", "--no-vacuum"),
            *("--time", str(seconds), "--file", str(self._script(form))),
            *("--host", "127.0.0.1", "--port", str(server.port), "--username", "postgres", _DATABASE),
        ]
        return Program(
            name="pgbench",
            argv=(str(binaries() / "pgbench"), *options),
            env={"PGPASSWORD": server.password, "LC_ALL": "C"},
            cwd=self.folder,
        )
