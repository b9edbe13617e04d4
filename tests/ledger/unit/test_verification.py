"""Verification finds any change of any row, blames the first broken entry, and finds nothing in a sound history."""

from dataclasses import fields, replace
from datetime import timedelta
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ledger.model.entry import Entry
from services.ledger.model.rows import sequence_of, transaction_id
from services.ledger.model.verification.account import Verification
from services.ledger.model.verification.findings import MAX_FINDINGS, Start
from services.ledger.model.verification.holds import HoldRows
from services.ledger.model.verification.keys import KeyRows
from services.ledger.model.verification.undoing import UndoneRows
from services.ledger.model.verification.use import Counts, UseRows
from tests.ledger.support.ledger_chance import Chance
from tests.ledger.support.ledger_memory import (
    Memory,
    credit,
    debit,
    extend,
    hold,
    opened,
    set_limit,
    settle,
    touch,
    undo,
)


def name_of(entry):
    return transaction_id(entry.created_at, entry.sequence)


def hold_rows(memory, account_id):
    """What the database would say of each hold."""
    entries = [e for e in memory.journal(account_id) if e.hold_id and e.type != "refund"]
    for key, row in memory.holds.items():
        if key[0] == account_id:
            own = [e for e in entries if e.hold_id == row.hold_id]
            charges = [e for e in own if e.type == "usage_deduction"]
            made = [e for e in own if e.type == "hold"]
            yield HoldRows(
                account_id,
                row.hold_id,
                row,
                ended=False,
                made=len(made),
                set_aside=sum(e.held for e in own if e.type in ("hold", "hold_extended")),
                held=sum(e.held for e in own),
                charges=len(charges),
                charged=sum(e.spent for e in charges),
                records=sum((r.account_id, r.hold_id) == key for r in memory.usage),
                first=own[0].sequence if own else 0,
                first_at=own[0].created_at if own else None,
            )


def use_rows(memory, account_id):
    deductions = {name_of(e): e for e in memory.journal(account_id) if e.type == "usage_deduction"}
    for record in memory.usage:
        if record.account_id == account_id:
            entry = deductions.get(record.transaction_id)
            counts = Counts(record.key_id, record.workspace, record.billed, record.tokens, record.requests)
            place = (entry.sequence, entry.created_at, entry.spent) if entry else (0, None, 0)
            yield UseRows(
                account_id, record.number, record.transaction_id, record.counted_at, counts, *place, differing=""
            )


def undone_rows(memory, account_id):
    undoing = [e for e in memory.journal(account_id) if e.original_id]
    for (owner, sequence), kept in memory.undone.items():
        if owner == account_id:
            original = memory.entries.get((owner, sequence))
            own = [e for e in undoing if sequence_of(e.original_id) == sequence]
            yield UndoneRows(
                account_id,
                sequence,
                kept,
                own[0].original_id if own else "",
                sum(e.funding if e.type == "reversal" else -e.spent for e in own),
                own[0].sequence if own else 0,
                own[0].created_at if own else None,
                original.created_at if original else None,
                (original.spent or -original.funding) if original else 0,
            )


def key_rows(memory, account_id):
    """Of each key, also those that do not differ."""
    entries = {e.request_id: e for e in memory.journal(account_id) if e.request_id}
    kept = {key[1]: past.sequence for key, past in memory.requests.items() if key[0] == account_id and past.sequence}
    for request_id in entries.keys() | kept.keys():
        entry = entries.get(request_id)
        place = (entry.sequence, entry.created_at) if entry else (0, None)
        yield KeyRows(account_id, request_id, *place, kept.get(request_id, 0))


def verified(memory, account_id="acme", *, journal=None, **words):
    """What verification says of an account in memory; of another journal in the place of its own."""
    subjects = [limit for key, row in memory.subjects.items() if key[0] == account_id for limit in row]
    grants = [row for key, row in memory.grants.items() if key[0] == account_id]
    verification = Verification(memory.books[account_id], limits=subjects, grants=grants, **words)
    for entry in memory.journal(account_id) if journal is None else journal:
        verification.entry(entry)
    for rows in use_rows(memory, account_id):
        verification.usage(rows)
    for rows in hold_rows(memory, account_id):
        verification.hold(rows)
    for rows in undone_rows(memory, account_id):
        verification.undone(rows)
    for rows in key_rows(memory, account_id):
        verification.key(rows)
    return verification.result()


def archived(memory, months_end, account_id):
    """A verification that begins where everything before a moment is archived, fed the rest."""
    journal = memory.journal(account_id)
    gone = [e for e in journal if e.created_at < months_end]
    uses = {}
    for entry in gone:
        for grant_id, amount in entry.grant_uses:
            uses[grant_id] = uses.get(grant_id, 0) + amount
    records = [r for r in memory.usage if r.account_id == account_id and r.created_at < months_end]
    totals = {}
    for record in records:
        place = (record.key_id, record.workspace)
        before = totals.get(place, (0, 0, 0))
        counted = (record.billed, record.tokens, record.requests)
        totals[place] = tuple(a + b for a, b in zip(before, counted, strict=True))
    start = Start(
        sequence=gone[-1].sequence if gone else 0,
        hash=gone[-1].hash if gone else b"",
        sums={n: sum(getattr(e, n) for e in gone) for n in ("funding", "available", "held", "spent", "expired")},
        uses={grant_id: amount for grant_id, amount in uses.items() if amount},
        usage_number=records[-1].number if records else 0,
        archived_before=months_end,
    )
    kept = Memory()
    kept.__dict__.update(memory.__dict__)
    kept.entries = {key: e for key, e in memory.entries.items() if e.created_at >= months_end}
    kept.usage = [r for r in memory.usage if r.created_at >= months_end]
    return kept, start, [Counts(*place, *sums) for place, sums in totals.items()]


def reasons(result):
    return {finding.reason for finding in result.findings}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 31, 3600, 43_200, 500_000])), max_size=20),
    st.integers(0, 19),
)
def test_any_history_is_found_sound_also_where_its_beginning_is_archived(steps, cut):
    memory = Memory()
    used = {"acme": 5, "some": 3, "house": 1}
    memory.apply(
        [opened("acme")],
        [opened("some", overdraft_kind="fixed", overdraft_limit=25)],
        [opened("house", overdraft_kind="unlimited")],
    )
    moments = [memory.now]
    for seed, seconds in steps:
        memory.apply(*Chance(seed, memory, used).batch())
        memory.wait(seconds)
        moments.append(memory.now)
    for account_id in used:
        result = verified(memory, account_id)
        assert result.findings == ()
        assert result.entries == memory.books[account_id].sequence
        kept, start, use = archived(memory, moments[cut % len(moments)], account_id)
        assert verified(kept, account_id, start=start, archived_use=use).findings == ()


TYPES = {
    "credit_purchase", "credit_adjustment", "usage_deduction", "refund", "reversal", "expiry",
    "hold", "hold_extended", "hold_released", "hold_expired",
}  # fmt: skip


@cache
def history():
    """A long one, with entries of every type."""
    memory = Memory()
    memory.do(opened())
    memory.do(credit(1000, "c1"))
    memory.do(hold(10, "first"))
    memory.do(extend(5, "first", "e1"))
    for seed in range(180):
        batch = Chance(seed, memory, {"acme": 1}).batch()
        memory.apply(*(group for group in batch if not any(getattr(x, "status", "") == "closed" for x in group)))
        memory.wait([0, 0, 1, 0, 5, 0, 3600, 43_200][seed % 8])
    assert {entry.type for entry in memory.journal()} == TYPES
    assert len(memory.journal()) > MAX_FINDINGS + 20
    return memory


# Another value of each field, whatever it is.
CHANGES = {
    int: lambda value: value + 1,
    str: lambda value: value + "x",
    bytes: lambda value: bytes([*value[:-1], value[-1] ^ 1]),
    tuple: lambda value: (*value, ("grant-1", 1)),
}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_of_any_field_of_any_entry_is_found(data):
    journal = history().journal()
    index = data.draw(st.integers(0, len(journal) - 1))
    changed = journal[index]
    name = data.draw(st.sampled_from([f.name for f in fields(Entry)]))
    value = getattr(changed, name)
    if name == "created_at":
        other = value + timedelta(microseconds=data.draw(st.sampled_from([-1, 1, 10**6])))
    elif name == "grant_uses" and value and data.draw(st.booleans()):
        other = data.draw(st.sampled_from([value[:-1], value[::-1], ((value[0][0], value[0][1] + 1), *value[1:])]))
    else:
        other = CHANGES[type(value)](value)
    if other == value:
        return
    journal[index] = replace(changed, **{name: other})
    result = verified(history(), journal=journal)
    assert result.findings
    first = result.findings[0]
    assert first.sequence == (changed.sequence if name != "sequence" else journal[index].sequence)


def test_first_broken_entry_comes_first_and_no_more_than_a_hundred_follow():
    journal = history().journal()
    journal[20:] = [replace(entry, description="changed") for entry in journal[20:]]
    result = verified(history(), journal=journal)
    assert [finding.sequence for finding in result.findings[:5]] == [21, 22, 23, 24, 25]
    assert len(result.findings) == MAX_FINDINGS
    assert result.entries == len(journal)


def test_deleted_swapped_and_added_entries_are_told_from_changed_ones():
    journal = history().journal()
    last = journal[-1]
    at = next(number for number, entry in enumerate(journal) if entry.type == "hold_expired")
    (gap,) = (f for f in verified(history(), journal=journal[:at] + journal[at + 1 :]).findings if f.sequence)
    assert (gap.reason, gap.sequence) == ("SEQUENCE_GAP", at + 2)
    assert gap.detail == f"expected entry {at + 1}, found {at + 2}"
    swapped = [*journal[:at], journal[at + 1], journal[at], *journal[at + 2 :]]
    assert verified(history(), journal=swapped).findings[0].reason == "SEQUENCE_GAP"
    shorter = verified(history(), journal=journal[:-1])
    assert "SEQUENCE_GAP" in reasons(shorter)
    twice = verified(history(), journal=[*journal, last])
    assert (twice.findings[0].reason, twice.findings[0].sequence) == ("SEQUENCE_GAP", last.sequence)


def test_forged_chain_does_not_hide_a_changed_amount():
    """Whoever can write rows can also make hashes: sums, grants and the account's row still disagree."""
    memory = history()
    journal = memory.journal()
    index = next(i for i, entry in enumerate(journal) if entry.type == "credit_purchase")
    forged = replace(journal[index], funding=journal[index].funding - 5, available=journal[index].available + 5)
    journal[index] = replace(forged, balance_after=forged.balance_after + 5)
    previous = journal[index - 1].hash if index else b""
    for later in range(index, len(journal)):
        journal[later] = replace(journal[later], hash=journal[later].chained(previous))
        previous = journal[later].hash
    result = verified(memory, journal=journal)
    assert reasons(result) >= {"GRANT_DIFFERS", "BALANCE_DIFFERS", "HASH_BROKEN"}
    assert (result.findings[0].reason, result.findings[0].sequence) == ("GRANT_DIFFERS", forged.sequence)


def test_grant_that_was_overspent_for_a_while_is_found_though_its_end_is_right():
    memory = Memory()
    memory.do(opened())
    memory.do(credit(100, "c1"))
    memory.do(credit(50, "c2"))
    memory.do(debit(60, "d1"))
    memory.do(debit(60, "d2"))
    memory.do(undo("refund", name_of(memory.journal()[3]), "r1"))
    journal = memory.journal()
    assert journal[3].grant_uses == (("grant-1", 40), ("grant-2", 20))
    journal[3] = replace(journal[3], grant_uses=(("grant-1", 60),))
    journal[4] = replace(journal[4], grant_uses=(("grant-1", -60),))
    for index in (3, 4):
        journal[index] = replace(journal[index], hash=journal[index].chained(journal[index - 1].hash))
    memory.books["acme"].last_hash = journal[4].hash
    (found,) = verified(memory, journal=journal).findings
    assert (found.reason, found.sequence) == ("GRANT_DIFFERS", 4)
    assert "expected 0 to 100 left of grant-1, found -20" in found.detail


def test_unbalanced_entry_is_named():
    journal = history().journal()
    journal[10] = replace(journal[10], expired=journal[10].expired + 1)
    result = verified(history(), journal=journal)
    assert {f.reason for f in result.findings if f.sequence == 11} >= {"NOT_ZERO_SUM", "HASH_BROKEN"}


@pytest.fixture
def small():
    """A history whose parts each account for something."""
    memory = Memory()
    memory.do(opened())
    memory.do(set_limit(1000))
    memory.do(set_limit(1000, scope="key", subject="k1", unit="tokens", window="lifetime"))
    memory.do(credit(100, "c1", expires_at=memory.now + timedelta(seconds=60)))
    memory.do(credit(50, "c2"))
    memory.do(hold(40, "h1", tokens=7, key_id="k1"))
    memory.do(settle(30, "h1", tokens=5))
    memory.do(debit(10, "d1"))
    charged = memory.journal()[3]
    memory.do(undo("refund", name_of(charged), "r1", 12))
    memory.do(hold(20, "h2", tokens=3, key_id="k1"))
    memory.wait(100)
    memory.do(touch())
    assert verified(memory).findings == ()
    return memory


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m.books["acme"], "available", 1), "BALANCE_DIFFERS"),
        (lambda m: setattr(m.books["acme"], "overdrawn", 1), "BALANCE_DIFFERS"),
        (lambda m: setattr(m.books["acme"], "cycle_spent", 1), "BALANCE_DIFFERS"),
        (lambda m: setattr(m.books["acme"], "last_hash", b"x"), "HASH_BROKEN"),
        (lambda m: setattr(m.books["acme"], "touched_at", m.now - timedelta(days=1)), "TIME_GOES_BACK"),
        (lambda m: setattr(m.books["acme"], "unbacked", 1), "HOLD_DIFFERS"),
        (lambda m: setattr(m.books["acme"], "usage_sequence", 3), "USAGE_DIFFERS"),
        (lambda m: setattr(m.books["acme"].grants[0], "remaining", 1), "GRANT_DIFFERS"),
        (lambda m: setattr(m.books["acme"].grants[0], "reserved", 1), "GRANT_DIFFERS"),
        (lambda m: setattr(m.books["acme"].grants[0], "priority", 1), "GRANT_DIFFERS"),
        (lambda m: m.books["acme"].grants.clear(), "GRANT_DIFFERS"),
        (lambda m: setattr(m.grants["acme", "grant-1"], "expired", 1), "GRANT_DIFFERS"),
        (lambda m: m.grants.pop(("acme", "grant-1")), "GRANT_DIFFERS"),
        (lambda m: setattr(m.grants["acme", "grant-1"].grant, "amount", 1), "GRANT_DIFFERS"),
        (lambda m: setattr(m.books["acme"].limits[0], "used", 1), "LIMIT_DIFFERS"),
        (lambda m: setattr(m.subjects["acme", "key", "k1"][0], "held", 1), "LIMIT_DIFFERS"),
        (lambda m: setattr(m.holds["acme", "h2"], "amount", 1), "HOLD_DIFFERS"),
        (lambda m: setattr(m.holds["acme", "h2"], "status", "released"), "HOLD_DIFFERS"),
        (lambda m: setattr(m.holds["acme", "h1"], "settled", 1), "HOLD_DIFFERS"),
        (lambda m: setattr(m.holds["acme", "h1"], "status", "open"), "HOLD_DIFFERS"),
        (lambda m: setattr(m.holds["acme", "h2"], "unbacked", 1), "HOLD_DIFFERS"),
        (lambda m: m.usage.pop(0), "USAGE_DIFFERS"),
        (lambda m: m.undone.update({("acme", 4): 13}), "REFUND_DIFFERS"),
    ],
)
def test_each_changed_row_beside_the_journal_is_found(small, change, reason):
    change(small)
    assert reason in reasons(verified(small))


def test_what_is_due_but_has_not_happened_yet_is_nothing_wrong():
    memory = Memory()
    memory.do(opened())
    memory.do(credit(100, "c1", expires_at=memory.now + timedelta(seconds=60)))
    memory.do(set_limit(1000))
    memory.do(hold(40, "h1", ttl_seconds=10))
    memory.wait(500_000)
    assert verified(memory).findings == ()


def over_refunded():
    """What the database says of an entry of 30 that was refunded twice, chained and kept as if it were right."""
    now = history().now
    return UndoneRows("acme", 1, 40, name_of(history().journal()[0]), 40, 5, now, history().journal()[0].created_at, 30)


def test_more_undone_than_there_was_is_found_however_consistent_it_is():
    verification = Verification(Memory().do(opened()).book)
    verification.undone(over_refunded())
    (found,) = verification.result().findings
    assert (found.reason, found.sequence) == ("REFUND_DIFFERS", 5)
    assert "expected at most 30 undone, found 40" in found.detail


@pytest.mark.parametrize(
    ("words", "sound"),
    [
        ({}, True),
        ({"ended": False}, False),
        ({"held": 3}, False),
        ({"charges": 2}, False),
        ({"records": 2}, False),
        ({"made": 0, "set_aside": 0, "held": -10}, True),  # made in a month that is archived
    ],
)
def test_hold_that_is_kept_by_name_alone_was_given_back_and_charged_once(words, sound):
    rows = {"ended": True, "made": 1, "set_aside": 10, "held": 0, "charges": 1, "charged": 5, "records": 1}
    verification = Verification(Memory().do(opened()).book)
    verification.hold(HoldRows("acme", "h1", None, **rows | words, first=2, first_at=history().now))
    assert (verification.result().findings == ()) == sound
