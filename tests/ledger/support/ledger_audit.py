"""Owns the audit of a ledger's database: reads the rows alone and says whether they add up."""

from collections import defaultdict
from datetime import UTC

import psycopg
from psycopg.rows import namedtuple_row

from services.ledger.model.entry import Entry
from services.ledger.store.documents import grants_of, uses_of


def rows(url, query):
    with psycopg.connect(url, row_factory=namedtuple_row, options="-c timezone=UTC") as connection:
        return connection.execute(query).fetchall()


def entry_of(row):
    fields = row._asdict()
    fields |= {"grant_uses": uses_of(row.grant_uses), "created_at": row.created_at.astimezone(UTC)}
    return Entry(**fields)


def audit(url):
    """Assert of every account that its journal, balance, grants, holds and usage agree; the entries by account."""
    journal = defaultdict(list)
    for row in rows(url, "SELECT * FROM journal ORDER BY account_id, sequence"):
        journal[row.account_id].append(entry_of(row))
    holds = defaultdict(list)
    for hold in rows(url, "SELECT * FROM holds"):
        holds[hold.account_id].append(hold)
    usage = defaultdict(list)
    for record in rows(url, "SELECT * FROM usage ORDER BY account_id, usage_number"):
        usage[record.account_id].append(record)
    for account in rows(url, "SELECT * FROM accounts"):
        _audit_journal(account, journal[account.account_id])
        _audit_holds(account, journal[account.account_id], holds[account.account_id])
        records = usage[account.account_id]
        assert [record.usage_number for record in records] == list(range(1, account.usage_sequence + 1))
        settled = [record.hold_id for record in records if record.hold_id]
        assert len(set(settled)) == len(settled), "a hold was settled twice"
        assert account.spent == sum(record.billed for record in records) - refunded(journal[account.account_id])
    return journal


def refunded(entries):
    return -sum(entry.spent for entry in entries if entry.spent < 0)


def _audit_journal(account, entries):
    assert [entry.sequence for entry in entries] == list(range(1, account.sequence + 1))
    previous = b""
    sums = dict.fromkeys(("funding", "available", "held", "spent", "expired"), 0)
    for entry in entries:
        moves = {name: getattr(entry, name) for name in sums}
        assert sum(moves.values()) == 0
        sums = {name: total + moves[name] for name, total in sums.items()}
        assert entry.balance_after == sums["available"]
        assert entry.chained(previous) == entry.hash, f"{account.account_id}: entry {entry.sequence} was changed"
        previous = entry.hash
    assert account.last_hash == previous
    assert -sums.pop("funding") == account.funded
    assert sums == {name: getattr(account, name) for name in sums}
    for grant in grants_of(account.grants):
        taken = sum(part for entry in entries for name, part in entry.grant_uses if name == grant.grant_id)
        assert grant.remaining == -taken
    assert account.overdrawn == sum(part for entry in entries for name, part in entry.grant_uses if name == "")


def _audit_holds(account, entries, holds):
    assert account.held == sum(hold.amount for hold in holds if hold.status == "open")
    made = [entry.hold_id for entry in entries if entry.type == "hold"]
    assert sorted(made) == sorted(hold.hold_id for hold in holds)
    charged = [entry.hold_id for entry in entries if entry.type == "usage_deduction" and entry.hold_id]
    assert len(set(charged)) == len(charged), "a hold was charged twice"
