"""Owns the accounts that are measured: one is opened by the ledger itself, all others are its rows again, by SQL.

Whatever columns and tables the schema has, a copy has what the ledger wrote into them, so its balances, grants, holds
and limits add up. Only its hashes are those of the first account's entries, and do not verify.
"""

import concurrent.futures
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from tests.bench.ledger.operations import KEY_ID, Calls, apply_request, hold_request

MODEL_ACCOUNT = "acct-model"
_CREDIT_NANOS = 10**18
_LIMIT_NANOS = 10**17
_LIMIT_COUNT = 10**12
_STANDING_SECONDS = 86_400
_COPIES_AT_ONCE = 20_000
_CONNECTIONS = 2

# Scope, unit, window: of the account's own row the first four, of its key's row the others.
LIMITS = (
    ("account", "nanos", "day"),
    ("account", "nanos", "month"),
    ("plan", "tokens", "cycle"),
    ("plan", "requests", "cycle"),
    ("key", "nanos", "month"),
    ("key", "requests", "day"),
)


def model_account(settled_calls: int) -> list[bytes]:
    """The batches that make the first account: two grants, six limits, calls that are settled and one that is not."""
    opened = pb.ApplyRequest()
    add = opened.operations.add
    add(open_account=pb.OpenAccountRequest(account_id=MODEL_ACCOUNT, display_name="An account of the bench"))
    for source, priority in (("subscription", 50), ("purchase", 100)):
        add(
            credit=pb.CreditAccountRequest(
                account_id=MODEL_ACCOUNT,
                amount_nanos=_CREDIT_NANOS,
                source=source,
                priority=priority,
                request_id=f"credit-{source}",
                description="credit for the bench",
            )
        )
    for scope, unit, window in LIMITS:
        add(
            set_limit=pb.SetLimitRequest(
                account_id=MODEL_ACCOUNT,
                scope=scope,
                subject=KEY_ID if scope == "key" else "",
                unit=unit,
                window=window,
                amount=_LIMIT_NANOS if unit == "nanos" else _LIMIT_COUNT,
            )
        )
    calls = Calls([MODEL_ACCOUNT], "model")
    made = [[calls.next()] for _ in range(settled_calls)]
    batches = [apply_request(ended, begun) for ended, begun in itertools.pairwise([[], *made, []])]
    standing = hold_request(calls.next())
    standing.ttl_seconds = _STANDING_SECONDS
    last = pb.ApplyRequest(operations=[pb.Operation(hold=standing)])
    return [opened.SerializeToString(), *(batches if made else []), last.SerializeToString()]


@dataclass(frozen=True)
class Books:
    """The rows of a ledger's database, as its superuser sees them."""

    url: str

    def copy(self, accounts: int, told: Callable[[int], None]) -> None:
        """Add so many copies of the first account; `told` is called with how many each step added.

        The planner's statistics and the visibility map are as after a while of running, and nothing waits to be written
        when this returns.
        """
        with psycopg.connect(self.url, autocommit=True) as connection:
            statements = _statements(connection)
        first = range(1, accounts + 1, _COPIES_AT_ONCE)
        with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS) as pool:
            steps = [
                pool.submit(self._copied, statements, n, min(n + _COPIES_AT_ONCE, accounts + 1) - 1) for n in first
            ]
            try:
                for step in concurrent.futures.as_completed(steps):
                    told(step.result())
            finally:
                for step in steps:
                    step.cancel()
            list(pool.map(self._vacuumed, statements))
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    def _copied(self, statements: dict[str, sql.Composed], first: int, last: int) -> int:
        with psycopg.connect(self.url) as connection:
            connection.execute("SET synchronous_commit = off")
            for statement in statements.values():
                connection.execute(statement, {"first": first, "last": last, "model": MODEL_ACCOUNT})
        return last - first + 1

    def _vacuumed(self, table: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(table)))

    def one(self, query: str) -> tuple[Any, ...]:
        """The only row of a query."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return row


def account_id(number: int) -> str:
    """The name of one copy; the first is number 1."""
    return f"acct-{number:08d}"


_TABLES = """
    SELECT c.relname, array_agg(a.attname ORDER BY a.attnum)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = '' AND a.attgenerated = ''
      -- What a sequence, a transaction's id or chance gives is each row's own.
      AND coalesce(pg_get_expr(d.adbin, d.adrelid), '') !~ 'nextval|xact|xid|random|uuid'
    GROUP BY c.relname HAVING bool_or(a.attname = 'account_id')
"""


def _statements(connection: psycopg.Connection) -> dict[str, sql.Composed]:
    """For each table with accounts in it: what writes the rows of copies `first` to `last` of the first account."""
    made = {}
    for table, columns in connection.execute(_TABLES).fetchall():
        others = [name for name in columns if name != "account_id"]
        made[table] = sql.SQL(
            "INSERT INTO {table} (account_id, {others}) SELECT copy.account_id, {values} "
            "FROM (SELECT 'acct-' || lpad(n::text, 8, '0') AS account_id "
            "FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n) AS copy "
            "CROSS JOIN (SELECT * FROM {table} WHERE account_id = %(model)s) AS model"
        ).format(
            table=sql.Identifier(table),
            others=sql.SQL(", ").join(map(sql.Identifier, others)),
            values=sql.SQL(", ").join(sql.Identifier("model", name) for name in others),
        )
    return made
