"""Row-level security: what is read for a customer is that customer's, by the service's checks and by Postgres too."""

import psycopg
import pytest
from psycopg import sql
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.access import rules
from services.kit.identity import Role
from tests.ledger.support.ledger_client import refused

SERVICES = [pb.DESCRIPTOR.services_by_name[name] for name in ("AccountService", "LedgerService", "JournalService")]
# Every RPC that a customer may call, and what it is asked beside the account.
READS = {
    "GetAccount": {},
    "GetBalance": {},
    "ListGrants": {"include_spent": True},
    "GetHold": {"hold_id": "h1"},
    "ListHolds": {},
    "ListLimits": {},
    "GetTransaction": {},
    "ListTransactions": {},
    "ListUsage": {},
    "ListWorkspaces": {},
    "SummarizeUsage": {},
    "GetMonthlySummary": {},
    "Export": {},
}
SECRET = "secret-of-other"


async def busy(ledger, account_id):
    """An account with a row in every table that a customer's reads see, its words naming it."""
    await ledger.open(account_id, credit=1_000, display_name=f"secret-of-{account_id}")
    words = {"key_id": f"secret-of-{account_id}", "workspace": f"secret-of-{account_id}"}
    await ledger.SetLimit(
        pb.SetLimitRequest(account_id=account_id, scope="key", subject=words["key_id"], window="day", amount=900)
    )
    for hold_id in ("h1", "h2"):
        await ledger.hold(10, hold_id, account_id, **words)
    usage = resources.UsageReport(provider=f"secret-of-{account_id}", model="m")
    settled = await ledger.settle(10, "h1", account_id, usage=usage, description=f"secret-of-{account_id}")
    await ledger.RefundTransaction(
        pb.RefundTransactionRequest(
            account_id=account_id, transaction_id=settled.transaction.transaction_id, amount_nanos=3, request_id="r"
        )
    )
    return settled.transaction


@pytest.fixture
async def entries(ledger):
    """Two accounts with the same ids inside; the deduction of each."""
    return {account_id: await busy(ledger, account_id) for account_id in ("acme", "other")}


@pytest.fixture
async def customer(ledger, entries):
    return ledger.acting_as(Role.ACCOUNT, account_id="acme")


async def asked(client, name, **words):
    """What an RPC answers, all of it, as text."""
    request = getattr(pb, f"{name}Request")(**(READS[name] | words))
    call = getattr(client, name)(request)
    if name == "Export":
        return "".join([piece.chunk.decode() async for piece in call])
    return str(await call)


def transaction_of(entries, account_id, name):
    return {"transaction_id": entries[account_id].transaction_id} if name == "GetTransaction" else {}


def test_every_rpc_that_a_customer_may_call_is_here():
    roles = {name: rule.role for service in SERVICES for name, rule in rules(service).items()}
    assert {name for name, role in roles.items() if role <= Role.ACCOUNT} == set(READS)


@pytest.mark.parametrize("name", READS)
async def test_customer_sees_its_own_and_nothing_of_another(customer, entries, name):
    words = transaction_of(entries, "acme", name)
    found = await asked(customer, name, **words)
    assert SECRET not in found
    assert found == await asked(customer, name, account_id="acme", **words) or name == "GetBalance"
    theirs = transaction_of(entries, "other", name)
    assert (await refused(asked(customer, name, account_id="other", **theirs))).reason == "ACCOUNT_MISMATCH"


async def test_customer_gets_nothing_by_another_accounts_hold_transaction_or_page(customer, ledger):
    await ledger.hold(5, "theirs", "other")
    await ledger.credit(5, "other", request_id="x")
    (newest, *_) = await ledger.transactions("other")
    assert (await refused(customer.GetHold(pb.GetHoldRequest(hold_id="theirs")))).reason == "HOLD_NOT_FOUND"
    request = pb.GetTransactionRequest(transaction_id=newest.transaction_id)
    assert (await refused(customer.GetTransaction(request))).reason == "TRANSACTION_NOT_FOUND"
    for name in ("ListTransactions", "ListHolds", "ListGrants"):
        await ledger.credit(5, "other")
        request = getattr(pb, f"{name}Request")(account_id="other", page_size=1)
        token = (await getattr(ledger, name)(request)).next_page_token
        assert token
        request = getattr(pb, f"{name}Request")(page_size=1, page_token=token)
        assert [x.field for x in (await refused(getattr(customer, name)(request))).violations] == ["page_token"]


# With what a table's policy is shut, these answers have nothing of it.
SHUT = {
    "accounts": dict.fromkeys(READS, "ACCOUNT_NOT_FOUND") | {"GetTransaction": ""},
    "subject_limits": {"ListLimits": ""},
    "grants": {"ListGrants": ""},
    "holds": {"GetHold": "HOLD_NOT_FOUND", "ListHolds": ""},
    "journal": {"GetTransaction": "TRANSACTION_NOT_FOUND", "ListTransactions": "", "ListHolds": ""},
    "usage": {"ListUsage": "", "SummarizeUsage": "", "ListWorkspaces": "", "GetMonthlySummary": "", "Export": ""},
    "undone": {},
}


@pytest.mark.parametrize("table", SHUT)
async def test_every_read_of_one_account_sees_what_postgres_lets_the_reader_see(
    ledger, entries, ledger_settings, table
):
    """Also one by a service, which may name any account: shut for the reader, a table looks empty to it."""
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute(sql.SQL("ALTER POLICY customer ON {} USING (false)").format(sql.Identifier(table)))
    for name, refusal in SHUT[table].items():
        words = {"account_id": "acme"} | transaction_of(entries, "acme", name)
        if refusal:
            assert (await refused(asked(ledger, name, **words))).reason == refusal
        elif table != "accounts":
            assert "secret-of-acme" not in await asked(ledger, name, **words)
    if table == "undone":
        assert {entry.refunded_nanos for entry in await ledger.transactions()} == {0}


async def test_balance_of_a_past_time_and_a_limits_count_are_read_narrowed_too(ledger, entries, ledger_settings):
    now = (await ledger.balance()).as_of
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("ALTER POLICY customer ON usage USING (false)")
        connection.execute("ALTER POLICY customer ON accounts USING (false)")
    request = pb.GetBalanceRequest(account_id="acme", as_of=now)
    assert (await refused(ledger.GetBalance(request))).reason == "ACCOUNT_NOT_FOUND"


async def test_transactions_say_how_much_of_them_was_undone(ledger, entries):
    request = pb.GetTransactionRequest(account_id="acme", transaction_id=entries["acme"].transaction_id)
    assert (await ledger.GetTransaction(request)).refunded_nanos == 3
    undone = {entry.type: entry.refunded_nanos for entry in await ledger.transactions()}
    assert undone == {"usage_deduction": 3, "refund": 0, "credit_purchase": 0}


# In SQL.


@pytest.fixture
def tables(ledger_settings, entries):
    """Each table with customers' rows, and its partitions."""
    query = """
        SELECT c.relname, c.relispartition FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE a.attname = 'account_id' AND c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
    """
    with psycopg.connect(ledger_settings.database_url) as connection:
        found = connection.execute(query).fetchall()
    return {name for name, part in found if not part}, {name for name, part in found if part}


@pytest.fixture
def reader(ledger_settings, entries):
    """A connection as the reader, of no account."""
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("INSERT INTO ended_holds SELECT account_id, 'long-ago' FROM accounts")
    with psycopg.connect(ledger_settings.database_url, autocommit=True) as connection:
        connection.execute("SELECT set_config('role', session_user || '_reader', false)")
        yield connection


# What an operator's archive leaves: not for customers, and not given to their reader.
OPERATORS = {"checkpoints"}


async def test_every_table_with_accounts_rows_has_a_policy_that_narrows_it_to_one(tables, reader):
    whole, parts = tables
    policies = reader.execute("SELECT tablename, cmd, qual, roles::text FROM pg_policies").fetchall()
    (user,) = reader.execute("SELECT session_user").fetchone()
    expected = ("SELECT", "(account_id = current_setting('tollkeeper.account'::text, true))", f"{{{user}_reader}}")
    assert {name: tuple(rest) for name, *rest in policies} == dict.fromkeys(whole - OPERATORS, expected)
    shut = reader.execute("SELECT relname FROM pg_class WHERE relrowsecurity").fetchall()
    assert {name for (name,) in shut} == whole - OPERATORS
    assert {"journal_default", "usage_default"} < parts


async def test_reader_sees_one_accounts_rows_and_none_where_none_is_named(tables, reader, ledger_settings):
    whole, _ = tables
    there = {}
    for table in whole:
        query = sql.SQL("SELECT account_id FROM {}").format(sql.Identifier(table))
        with psycopg.connect(ledger_settings.database_url) as owner:
            there[table] = {name for (name,) in owner.execute(query).fetchall()}
    assert {table for table, found in there.items() if found == {"acme", "other"}} >= set(SHUT) | {"ended_holds"}
    for account_id in ("acme", "other", "nobody", ""):
        reader.execute("SELECT set_config('tollkeeper.account', %s, false)", (account_id,))
        for table in sorted(whole - OPERATORS):
            query = sql.SQL("SELECT DISTINCT account_id FROM {}").format(sql.Identifier(table))
            found = {name for (name,) in reader.execute(query).fetchall()}
            assert found == there[table] & {account_id}, (table, account_id)
    reader.execute("RESET tollkeeper.account")
    for table in sorted(whole - OPERATORS):
        assert reader.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))).fetchall() == []


async def test_reader_cannot_write_nor_read_partitions_or_what_is_not_customers(tables, reader):
    whole, parts = tables
    reader.execute("SELECT set_config('tollkeeper.account', 'acme', false)")
    statements = [sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(x)) for x in [*parts, *OPERATORS, "feed_slots"]]
    for form in ("DELETE FROM {}", "UPDATE {} SET account_id = 'acme'", "INSERT INTO {} DEFAULT VALUES", "TRUNCATE {}"):
        statements += [sql.SQL(form).format(sql.Identifier(table)) for table in sorted(whole)]
    for statement in statements:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(statement)
