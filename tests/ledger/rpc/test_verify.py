"""VerifyAccount: a sound account is found sound whatever happened to it, and what was changed in any row is named."""

import asyncio

import grpc
import psycopg
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.identity import Role
from services.ledger.store.months import detach
from services.ledger.store.partitions import month_name
from tests.ledger.support.ledger_audit import audit, rows
from tests.ledger.support.ledger_client import refused, violations
from tests.ledger.support.ledger_clock import Clock
from tests.ledger.support.ledger_history import LIMITS, random_history, whole_history
from tests.ledger.support.ledger_past import connected, make_past, months_ago

TYPES = {
    "credit_purchase", "subscription_grant", "promotion", "credit_adjustment", "usage_deduction", "refund", "reversal",
    "expiry", "hold", "hold_extended", "hold_released", "hold_expired",
}  # fmt: skip


async def verify(ledger, account_id="acme"):
    return await ledger.VerifyAccount(pb.VerifyAccountRequest(account_id=account_id))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


TABLES = (
    "accounts", "subject_limits", "grants", "holds", "journal", "usage", "undone", "requests", "checkpoints",
    "archived_use",
)  # fmt: skip


class Changes:
    """Changes rows behind the ledger's back, and can put them back as they were."""

    def __init__(self, url):
        self._url = url
        with psycopg.connect(url) as connection:
            for table in TABLES:
                connection.execute(f"CREATE TABLE kept_{table} AS TABLE {table}")

    def __call__(self, *statements):
        with psycopg.connect(self._url) as connection:
            for statement in statements:
                assert connection.execute(statement).rowcount, statement

    def undo(self):
        with psycopg.connect(self._url) as connection:
            for table in TABLES:
                connection.execute(f"TRUNCATE {table}")
                connection.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")

    def first(self, entry_type):
        """The number of the first entry of a type."""
        (row,) = rows(self._url, f"SELECT min(sequence) AS sequence FROM journal WHERE type = '{entry_type}'")
        return row.sequence


@pytest.fixture
async def whole(ledger, clock, ledger_settings):
    """An account to which everything has happened, and a way to change its rows."""
    await whole_history(ledger, clock)

    return Changes(ledger_settings.database_url)


async def test_grant_that_expires_in_parts_and_rolls_over_is_sound(ledger, ledger_settings, clock):
    await ledger.open()
    await ledger.credit(100, source="subscription", expires_at=clock.stamp(hours=1), rollover_cap_nanos=50)
    await ledger.hold(60, "h1", ttl_seconds=3 * 3600)
    clock.wait(hours=2)
    await ledger.hold(1, "h2")  # of the 40 that were free, which have rolled over
    assert not (await verify(ledger)).discrepancies
    grants = "jsonb_set(grants::jsonb, '{0,8}', '49')::json"
    rows(ledger_settings.database_url, f"UPDATE accounts SET grants = {grants} RETURNING 1")
    assert [finding.reason for finding in (await verify(ledger)).discrepancies] == ["GRANT_DIFFERS"]


async def test_account_to_which_everything_happened_is_sound(whole, ledger, ledger_settings):
    journal = audit(ledger_settings.database_url)["acme"]
    assert {entry.type for entry in journal} == TYPES
    assert len({(entry.created_at.year, entry.created_at.month) for entry in journal}) > 1
    assert {f"{limit.limit_id}" for limit in (await ledger.limits()).values()} == {":".join(x) for x in LIMITS}
    found = await verify(ledger)
    assert list(found.discrepancies) == []
    assert (found.sound, found.transactions_checked) == (True, len(journal))


async def test_random_histories_are_sound(ledger, clock, ledger_settings):
    for seed in range(3):
        await random_history(ledger, clock, seed, f"a{seed}")
        found = await verify(ledger, f"a{seed}")
        assert list(found.discrepancies) == [], seed
        assert found.transactions_checked > 50
    audit(ledger_settings.database_url)


async def test_account_is_found_sound_while_others_write_to_it(ledger):
    await ledger.open(credit=10**6)
    writing = True

    async def write(worker):
        number = 0
        while writing:
            number += 1
            await ledger.hold(10, f"h-{worker}-{number}")
            await ledger.settle(7, f"h-{worker}-{number}")

    writers = [asyncio.create_task(write(worker)) for worker in range(3)]
    checked = 0
    while checked < 100:
        found = await verify(ledger)
        assert found.sound, found
        checked = found.transactions_checked
    writing = False
    await asyncio.gather(*writers)


async def test_what_is_due_is_not_made_to_happen_and_is_nothing_wrong(whole, ledger, ledger_settings, clock):
    clock.wait(days=400)
    before = rows(ledger_settings.database_url, "SELECT * FROM accounts")
    assert (await verify(ledger)).sound
    assert rows(ledger_settings.database_url, "SELECT * FROM accounts") == before


async def test_account_without_entries_is_sound(ledger):
    await ledger.open()
    found = await verify(ledger)
    assert (found.sound, found.transactions_checked) == (True, 0)


async def test_only_operators_may_ask_and_only_of_an_account_there_is(ledger):
    assert (await refused(verify(ledger, "none"))).reason == "ACCOUNT_NOT_FOUND"
    assert violations(await refused(verify(ledger, ""))) == {"account_id"}
    await ledger.open()
    customer = ledger.acting_as(Role.ACCOUNT, account_id="acme")
    with pytest.raises(grpc.RpcError) as caught:
        await verify(customer)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert (await verify(ledger.acting_as(Role.ADMIN))).sound


async def broken(ledger):
    found = await verify(ledger)
    assert not found.sound
    return found.discrepancies


# The entry that is changed, by its type; what is done to it; what is found of it.
CHANGED_ENTRIES = [
    ("usage_deduction", "spent = spent + 1, held = held - 1", "HASH_BROKEN"),
    ("usage_deduction", "balance_after = balance_after + 1", "HASH_BROKEN"),
    ("credit_purchase", "description = 'another'", "HASH_BROKEN"),
    ("credit_purchase", "grant_uses = '[]'", "HASH_BROKEN"),
    ("credit_purchase", "grant_uses = '[[\"grant-1\"]]'", "HASH_BROKEN"),
    ("credit_purchase", "grant_uses = '{\"grant-1\": 1}'", "HASH_BROKEN"),
    ("credit_purchase", "grant_uses = replace(grant_uses::text, '-1000', '\"-1000\"')::jsonb", "HASH_BROKEN"),
    ("hold", "hold_id = 'another'", "HASH_BROKEN"),
    ("refund", "original_id = 'nothing'", "HASH_BROKEN"),
    ("refund", "request_id = ''", "HASH_BROKEN"),
    ("expiry", "created_at = created_at + interval '1 microsecond'", "HASH_BROKEN"),
    ("reversal", "hash = 'x'", "HASH_BROKEN"),
    ("hold_expired", "account_id = 'other'", "SEQUENCE_GAP"),
    ("promotion", "sequence = 1000000", "SEQUENCE_GAP"),
    ("hold_released", "created_at = created_at - interval '20 days'", "TIME_GOES_BACK"),
]


async def test_each_changed_entry_is_named_first(whole, ledger):
    for entry_type, change, reason in CHANGED_ENTRIES:
        sequence = whole.first(entry_type)
        whole(f"UPDATE journal SET {change} WHERE sequence = {sequence}")
        found = await broken(ledger)
        blamed = sequence + 1 if reason == "SEQUENCE_GAP" else sequence
        assert found[0].transaction_id.endswith(f"-{blamed}"), change
        assert reason in {wrong.reason for wrong in found if wrong.transaction_id == found[0].transaction_id}, change
        assert all("expected" in wrong.detail and "found" in wrong.detail for wrong in found)
        whole.undo()
    assert (await verify(ledger)).sound


async def test_deleted_entry_is_a_gap(whole, ledger, ledger_settings):
    (after,) = rows(ledger_settings.database_url, "SELECT * FROM journal WHERE sequence = 6")
    whole("DELETE FROM journal WHERE sequence = 5")
    first = (await broken(ledger))[0]
    assert (first.reason, first.detail) == ("SEQUENCE_GAP", "expected entry 5, found 6")
    assert first.transaction_id == f"txn-{after.created_at:%Y%m}-6"


async def test_deleted_last_entry_is_missed(whole, ledger):
    whole("DELETE FROM journal WHERE sequence = (SELECT max(sequence) FROM journal)")
    assert {"SEQUENCE_GAP", "BALANCE_DIFFERS"} <= {wrong.reason for wrong in await broken(ledger)}


async def test_swapped_entries_are_found(whole, ledger):
    whole(*(f"UPDATE journal SET sequence = {new} WHERE sequence = {old}" for old, new in ((3, 0), (4, 3), (0, 4))))
    first = (await broken(ledger))[0]
    assert (first.reason, first.transaction_id[-2:]) == ("HASH_BROKEN", "-3")


async def test_entry_that_does_not_balance_is_named(whole, ledger):
    # The database itself refuses it, but for one who can change tables.
    whole("ALTER TABLE journal DROP CONSTRAINT journal_sums_to_zero")
    whole("UPDATE journal SET expired = expired + 1 WHERE sequence = 4")
    found = await broken(ledger)
    assert {"NOT_ZERO_SUM", "HASH_BROKEN"} <= {w.reason for w in found if w.transaction_id.endswith("-4")}


CHANGED_ROWS = [
    ("UPDATE accounts SET available = available + 1, funded = funded + 1", "BALANCE_DIFFERS", "available"),
    ("UPDATE accounts SET held = held + 1, available = available - 1", "HOLD_DIFFERS", "which open holds add up to"),
    ("UPDATE accounts SET overdrawn = overdrawn + 1", "BALANCE_DIFFERS", "overdrawn"),
    ("UPDATE accounts SET cycle_spent = cycle_spent + 1", "BALANCE_DIFFERS", "cycle"),
    ("UPDATE accounts SET last_hash = 'x'", "HASH_BROKEN", "in the account"),
    ("UPDATE accounts SET sequence = sequence + 1", "SEQUENCE_GAP", "last entry"),
    ("UPDATE accounts SET touched_at = touched_at - interval '1 day'", "TIME_GOES_BACK", "account's own"),
    ("UPDATE accounts SET unbacked = unbacked + 1", "HOLD_DIFFERS", "unbacked"),
    ("UPDATE accounts SET grants = jsonb_set(grants::jsonb, '{0,6}', '1')", "GRANT_DIFFERS", "left of grant-"),
    ("UPDATE accounts SET grants = jsonb_set(grants::jsonb, '{0,7}', '1')", "GRANT_DIFFERS", "reserved of grant-"),
    ("UPDATE accounts SET grants = jsonb_set(grants::jsonb, '{0,2}', '1')", "GRANT_DIFFERS", "words"),
    ("UPDATE accounts SET grants = '[]'", "GRANT_DIFFERS", "left of grant-"),
    ("UPDATE accounts SET grants = '{}'", "GRANT_DIFFERS", "left of grant-"),
    ("UPDATE accounts SET grants = '[1, 2]'", "GRANT_DIFFERS", "expected grants"),
    ("UPDATE accounts SET grants = jsonb_set(grants::jsonb, '{0,6}', '\"1\"')", "GRANT_DIFFERS", "expected grants"),
    ("UPDATE accounts SET grants = grants::jsonb || jsonb_build_array(grants::jsonb->0)", "GRANT_DIFFERS", "one twice"),
    ("DELETE FROM grants WHERE sequence = 2", "GRANT_DIFFERS", "row of grant-2, which it names"),
    ("UPDATE grants SET amount = amount + 1 WHERE sequence = 2", "GRANT_DIFFERS", "grant-2"),
    ("UPDATE grants SET expired = expired + 1 WHERE sequence = 2", "GRANT_DIFFERS", "expired of grant-2"),
    ("DELETE FROM grants WHERE sequence = 2", "GRANT_DIFFERS", "grant-2"),
    ("UPDATE holds SET amount = amount + 1 WHERE hold_id = 'open1'", "HOLD_DIFFERS", "open1"),
    ("UPDATE holds SET amount = amount + 1 WHERE hold_id = 'h1'", "HOLD_DIFFERS", "h1"),
    ("UPDATE holds SET settled = settled + 1 WHERE hold_id = 'h3'", "HOLD_DIFFERS", "h3"),
    ("UPDATE holds SET status = 'open' WHERE hold_id = 'h2'", "HOLD_DIFFERS", "h2"),
    ("UPDATE holds SET status = 'odd' WHERE hold_id = 'h2'", "HOLD_DIFFERS", "expected a status"),
    ("UPDATE holds SET settled = 1 WHERE hold_id = 'open1'", "HOLD_DIFFERS", "charged nothing"),
    ("UPDATE holds SET status = 'settled' WHERE hold_id = 'h2'", "HOLD_DIFFERS", "h2"),
    ("UPDATE holds SET status = 'released' WHERE hold_id = 'open1'", "HOLD_DIFFERS", "open1"),
    ("UPDATE holds SET sequence = sequence + 1 WHERE hold_id = 'open1'", "HOLD_DIFFERS", "open1"),
    ("UPDATE holds SET unbacked = 1 WHERE hold_id = 'open1'", "HOLD_DIFFERS", "open1"),
    ("UPDATE holds SET reservations = '[[1]]' WHERE hold_id = 'open1'", "HOLD_DIFFERS", "open1"),
    ("DELETE FROM holds WHERE hold_id = 'h1'", "HOLD_DIFFERS", "h1"),
    ("DELETE FROM holds WHERE hold_id = 'open2'", "HOLD_DIFFERS", "open2"),
    ("UPDATE accounts SET limits = jsonb_set(limits::jsonb, '{0,9}', '1')", "LIMIT_DIFFERS", "account::nanos:day"),
    ("UPDATE accounts SET limits = jsonb_set(limits::jsonb, '{0,10}', '1')", "LIMIT_DIFFERS", "account::nanos:day"),
    ("UPDATE accounts SET limits = '7'", "LIMIT_DIFFERS", "expected limits"),
    (
        "UPDATE subject_limits SET limits = jsonb_set(limits::jsonb, '{0,9}', '99') WHERE scope = 'workspace'",
        "LIMIT_DIFFERS",
        "workspace:w1:tokens:day",
    ),
    ("DELETE FROM usage WHERE usage_number = 3", "USAGE_DIFFERS", "expected usage record 3"),
    ("DELETE FROM usage WHERE usage_number = (SELECT max(usage_number) FROM usage)", "USAGE_DIFFERS", "last usage"),
    ("DELETE FROM usage WHERE usage_number = 2", "USAGE_DIFFERS", "expected its usage record"),
    ("UPDATE usage SET billed = billed + 1 WHERE usage_number = 1", "USAGE_DIFFERS", "usage record 1"),
    ("UPDATE usage SET key_id = 'k9' WHERE usage_number = 1", "USAGE_DIFFERS", "its entry's key"),
    ("UPDATE usage SET transaction_id = '' WHERE usage_number = 1", "USAGE_DIFFERS", "usage record 1"),
    ("UPDATE usage SET tokens = tokens + 1 WHERE usage_number = 3", "LIMIT_DIFFERS", "plan::tokens:cycle"),
    ("UPDATE usage SET hold_id = 'h1' WHERE hold_id = 'free'", "HOLD_DIFFERS", "h1"),
    ("UPDATE undone SET amount = amount + 1", "REFUND_DIFFERS", "undone"),
    ("DELETE FROM undone", "REFUND_DIFFERS", "found 0"),
    ("INSERT INTO undone VALUES ('acme', 1, 5)", "REFUND_DIFFERS", "entry 1"),
    ("INSERT INTO undone VALUES ('acme', 100000, 5)", "REFUND_DIFFERS", "100000"),
    ("DELETE FROM requests WHERE request_id = 'c2'", "KEY_DIFFERS", "'c2'"),
    ("UPDATE requests SET request_id = 'other' WHERE request_id = 'e1'", "KEY_DIFFERS", "'other'"),
    ("UPDATE requests SET sequence = sequence + 1 WHERE request_id = 'r1'", "KEY_DIFFERS", "'r1'"),
    ("UPDATE requests SET sequence = 0 WHERE request_id = 'd2'", "KEY_DIFFERS", "'d2'"),
]


async def test_each_changed_row_beside_the_journal_is_named(whole, ledger):
    for statement, reason, detail in CHANGED_ROWS:
        whole(statement)
        found = (await verify(ledger)).discrepancies
        assert [wrong for wrong in found if wrong.reason == reason and detail in wrong.detail], (statement, found)
        assert all("expected" in wrong.detail and "found" in wrong.detail for wrong in found)
        whole.undo()
    assert (await verify(ledger)).sound


async def test_account_whose_first_month_is_archived_goes_on_from_its_checkpoint(ledger, monkeypatch, ledger_settings):
    async with connected(ledger_settings) as connection:
        await make_past(connection, 4)
        await whole_history(ledger, Clock(monkeypatch, months_ago(3)))
        await detach(connection, month_name(months_ago(4)))
        await detach(connection, month_name(months_ago(3)))
    journal = rows(ledger_settings.database_url, "SELECT * FROM journal ORDER BY sequence")
    assert journal[0].sequence > 1
    found = await verify(ledger)
    assert list(found.discrepancies) == []
    assert found.transactions_checked == len(journal)
    change = Changes(ledger_settings.database_url)
    for statement, reason in (
        ("UPDATE checkpoints SET hash = 'x'", "HASH_BROKEN"),
        ("UPDATE checkpoints SET sequence = sequence - 1", "SEQUENCE_GAP"),
        ("UPDATE checkpoints SET spent = spent + 1", "BALANCE_DIFFERS"),
        ("UPDATE checkpoints SET grant_uses = '[]'", "GRANT_DIFFERS"),
        ("UPDATE checkpoints SET usage_number = usage_number + 1", "USAGE_DIFFERS"),
        ("UPDATE archived_use SET requests = requests + 1", "LIMIT_DIFFERS"),
        ("UPDATE grants SET expired = -1 WHERE sequence = 1", "GRANT_DIFFERS"),
        ("DELETE FROM checkpoints", "SEQUENCE_GAP"),
    ):
        change(statement)
        assert reason in {wrong.reason for wrong in (await verify(ledger)).discrepancies}, statement
        change.undo()
    assert (await verify(ledger)).sound


async def test_added_deduction_of_a_settled_hold_is_found_however_well_it_is_chained(whole, ledger, ledger_settings):
    """Somebody who can compute hashes books a second charge of one hold, and moves the balance along."""
    entry = audit(ledger_settings.database_url)["acme"]
    again = next(e for e in entry if e.type == "usage_deduction" and e.hold_id == "h3")
    again.sequence, again.created_at = entry[-1].sequence + 1, entry[-1].created_at
    again.balance_after = entry[-1].balance_after + again.available
    again.hash = again.chained(entry[-1].hash)
    columns = (
        "account_id, sequence, created_at, type, funding, available, held, spent, expired, balance_after, grant_uses, "
        "description, request_id, hold_id, usage_id, key_id, workspace, provider, model, original_id"
    )
    whole(
        f"INSERT INTO journal ({columns}, hash) SELECT account_id, {again.sequence}, '{again.created_at}', type, "
        f"funding, available, held, spent, expired, {again.balance_after}, grant_uses, description, request_id, "
        f"hold_id, usage_id, key_id, workspace, provider, model, original_id, '\\x{again.hash.hex()}' "
        "FROM journal WHERE type = 'usage_deduction' AND hold_id = 'h3'",
        f"UPDATE accounts SET sequence = sequence + 1, last_hash = '\\x{again.hash.hex()}', "
        f"available = available - {again.spent}, spent = spent + {again.spent}, "
        f"cycle_spent = cycle_spent + {again.spent}",
    )
    found = await broken(ledger)
    assert {"HOLD_DIFFERS", "USAGE_DIFFERS"} <= {wrong.reason for wrong in found}
    assert any("settled once, found 2 deductions" in wrong.detail for wrong in found)


async def test_no_more_than_a_hundred_are_told_the_first_broken_entry_first(ledger, clock, ledger_settings):
    await ledger.open(credit=1000)
    for number in range(110):
        await ledger.hold(1, f"h{number}")
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("UPDATE journal SET description = 'changed'")
    found = await broken(ledger)
    assert len(found) == 100
    assert [wrong.transaction_id.rpartition("-")[2] for wrong in found] == [str(n) for n in range(1, 101)]
