"""What a writer remembers of accounts is never trusted: whatever others do meanwhile, it answers as the database is.

Two group commits on one database are two replicas. `mine` remembers, `theirs` changes what it remembers.
"""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from prometheus_client import REGISTRY

from services.ledger.errors import (
    AccountSuspended,
    IdempotencyConflict,
    InsufficientCredit,
    LedgerError,
    LimitExceeded,
    ResultArchived,
)
from services.ledger.group_commit import GroupCommit
from services.ledger.store import loading, remembered
from services.ledger.store.due import BUSY_SECONDS
from services.ledger.store.retention import BEGINNING, forget_holds
from tests.ledger.support.ledger_audit import audit, rows
from tests.ledger.support.ledger_clock import Clock
from tests.ledger.support.ledger_memory import (
    credit,
    debit,
    hold,
    opened,
    release,
    set_limit,
    settle,
    suspend,
    touch,
)
from tests.ledger.support.ledger_past import connected


@asynccontextmanager
async def replica(settings, **changes):
    commits = GroupCommit(settings.model_copy(update={"writers": 1} | changes))
    commits.start()
    try:
        yield commits
    finally:
        await commits.stop()


@pytest.fixture
async def mine(ledger_settings):
    """A replica that remembers the account: 100 of credit, of which `open` holds 10."""
    async with replica(ledger_settings) as commits:
        await commits.submit([[opened()]])
        await commits.submit([[credit(100, "c1")]])
        await done(commits, hold(10, "open", key_id="k1", workspace="w1"))
        yield commits
    if not rows(ledger_settings.database_url, "SELECT FROM ended_holds"):
        audit(ledger_settings.database_url)


@pytest.fixture
async def theirs(ledger_settings):
    async with replica(ledger_settings) as commits:
        yield commits


@pytest.fixture(autouse=True)
def never_in_doubt(monkeypatch):
    """What was wrong once is remembered again at once, so that each test can be of several mistakes."""
    monkeypatch.setattr(remembered, "_FIRST_DOUBT_SECONDS", 0.0)
    monkeypatch.setattr(remembered, "_LONGEST_DOUBT_SECONDS", 0.0)


async def done(commits, *group):
    """Do operations, as a linked group where they are several; the outcome of the first. Raises its refusal."""
    results = await commits.submit([group])
    if isinstance(results[0].outcome, LedgerError):
        raise results[0].outcome
    return results[0].outcome


KINDS = ("remembered", "read", "outdated")


def batches(kind):
    return REGISTRY.get_sample_value("tollkeeper_ledger_batches_total", {"accounts": kind}) or 0.0


async def test_answer_made_of_what_others_had_changed_is_made_again(mine, theirs):
    made = []

    def available(results):
        made.append(results[0].outcome.available)
        return made[-1]

    assert await mine.answer([[hold(10, "h1")]], available) == 80
    await done(theirs, hold(30, "h2"))
    assert await mine.answer([[hold(10, "h3")]], available) == 40
    # While Postgres worked; then, when it had found the account changed, of what it is.
    assert made == [80, 70, 40]


async def test_answer_that_cannot_be_made_fails_its_call_alone_and_is_booked(mine, ledger_settings):
    def broken(_results):
        raise ArithmeticError

    other = asyncio.create_task(done(mine, hold(10, "h2")))
    with pytest.raises(ArithmeticError):
        await mine.answer([[hold(10, "h1")]], broken)
    await other
    assert (await done(mine, hold(10, "h3"))).available == 60
    (account,) = rows(ledger_settings.database_url, "SELECT available, held FROM accounts")
    assert tuple(account) == (60, 40)


async def test_calls_of_a_remembered_account_read_nothing(mine, ledger_settings):
    before, read = batches("remembered"), batches("read")
    for number in range(5):
        assert (await done(mine, hold(10, f"h{number}", key_id="k1"))).available == 80
        assert (await done(mine, settle(0, f"h{number}"))).available == 90
    assert (await done(mine, settle(4, "open"))).available == 96
    assert (batches("remembered") - before, batches("read") - read) == (11, 0)
    (account,) = rows(ledger_settings.database_url, "SELECT available, held, spent FROM accounts")
    assert tuple(account) == (96, 0, 4)


async def test_credit_that_another_replica_spent_is_not_spent_again(mine, theirs):
    await done(theirs, debit(85, "d1"))
    with pytest.raises(InsufficientCredit):
        await done(mine, hold(10, "h1"))
    assert (await done(mine, hold(5, "h2"))).available == 0


async def test_credit_that_another_replica_gave_is_not_refused(mine, theirs):
    with pytest.raises(InsufficientCredit):
        await done(mine, hold(100, "h1"))
    await done(mine, hold(90, "h2"))
    await done(theirs, credit(50, "c2"))
    assert (await done(mine, hold(50, "h3"))).available == 0


async def test_refusal_from_memory_is_confirmed(mine, theirs):
    await done(mine, hold(90, "h1"))
    await done(theirs, release("h1"))
    assert (await done(mine, hold(90, "h2"))).available == 0


async def test_account_that_is_refused_is_still_remembered(mine, theirs, ledger_settings):
    await done(theirs, set_limit(50, scope="key", subject="k2"))

    async def refused(commits, *group):
        with pytest.raises(LedgerError):
            await done(commits, *group)

    for commits in (mine, theirs):  # each reads it once
        read, before = batches("read") + batches("outdated"), batches("remembered")
        await refused(commits, hold(51, "h1", key_id="k2", workspace="w2"))
        await refused(commits, hold(5000, "h2", workspace="w2"))
        await refused(commits, hold(50, "h3", key_id="k2"), hold(5000, "h4", key_id="k2"))
        assert (batches("read") + batches("outdated") - read, batches("remembered") - before) == (1, 2)
    assert (await done(mine, hold(50, "h3", key_id="k2"))).available == 40
    await refused(theirs, hold(1, "h5", key_id="k2"))
    assert (await done(theirs, hold(40, "h6"))).available == 0
    (account,) = rows(ledger_settings.database_url, "SELECT available, held FROM accounts")
    assert tuple(account) == (0, 100)


async def test_limit_of_a_key_that_another_replica_set_holds_at_once(mine, theirs):
    await done(mine, hold(1, "h1", key_id="k1"))
    await done(theirs, set_limit(15, scope="key", subject="k1"))
    with pytest.raises(LimitExceeded):  # 11 are held
        await done(mine, hold(5, "h2", key_id="k1"))
    await done(mine, hold(4, "h3", key_id="k1"))
    await done(theirs, settle(1, "open"))
    assert (await done(mine, hold(9, "h4", key_id="k1"))).hold.amount == 9


async def test_limit_that_this_replica_set_holds_at_once(mine):
    await done(mine, set_limit(15, scope="workspace", subject="w1"))
    with pytest.raises(LimitExceeded):
        await done(mine, hold(6, "h1", workspace="w1"))
    await done(mine, hold(5, "h2", workspace="w1"))
    with pytest.raises(LimitExceeded):
        await done(mine, hold(1, "h3", workspace="w1"))
    await done(mine, settle(3, "h2"))
    assert (await done(mine, hold(2, "h4", workspace="w1"))).hold.amount == 2


async def test_account_that_another_replica_suspended_is_refused(mine, theirs):
    await done(theirs, suspend("s1"))
    with pytest.raises(AccountSuspended):
        await done(mine, hold(1, "h1"))
    assert (await done(mine, settle(3, "open"))).available == 97


async def test_hold_that_another_replica_made_is_made_once(mine, theirs):
    first = await done(theirs, hold(20, "h1"))
    results = await mine.submit([[hold(20, "h1")], [hold(30, "h2")]])
    assert [result.replayed for result in results] == [True, False]
    assert results[0].outcome.available == first.available == 70
    assert results[1].outcome.available == 40
    with pytest.raises(IdempotencyConflict):
        await done(mine, hold(21, "h1"))


@pytest.mark.parametrize(
    "group", [[hold(1, "h1")], [hold(1, "h1"), settle(1, "open")], [hold(1, "h1"), settle(1, "never")]],
    ids=["one", "two", "some-read"],
)  # fmt: skip
async def test_batch_of_an_account_that_another_replica_changed_counts_as_outdated(mine, theirs, group):
    await done(theirs, credit(5, "c2"))
    before = [batches(kind) for kind in KINDS]
    await mine.submit([[operation] for operation in group])
    assert [batches(kind) for kind in KINDS] == [before[0], before[1], before[2] + 1]


async def test_batch_of_a_hold_that_was_made_before_counts_as_read(mine):
    await done(mine, hold(20, "h1"))
    await done(mine, settle(5, "h1"))
    before = [batches(kind) for kind in KINDS]
    assert (await mine.submit([[hold(20, "h1")]]))[0].replayed
    assert [batches(kind) for kind in KINDS] == [before[0], before[1] + 1, before[2]]


async def test_hold_that_this_replica_made_and_settled_is_made_once(mine):
    first = await done(mine, hold(20, "h1"))
    (again,) = await mine.submit([[hold(20, "h1")]])
    assert (again.replayed, again.outcome.available) == (True, first.available)
    booked = await done(mine, settle(5, "h1"))
    (again,) = await mine.submit([[settle(5, "h1")]])
    assert (again.replayed, again.outcome.available) == (True, booked.available)
    (again,) = await mine.submit([[hold(20, "h1")]])
    assert again.replayed
    with pytest.raises(IdempotencyConflict):
        await done(mine, settle(6, "h1"))


async def test_hold_that_this_replica_settled_is_replayed_where_another_would_be_refused(mine):
    await done(mine, hold(90, "h1"))
    await done(mine, settle(90, "h1"))
    (again,) = await mine.submit([[hold(90, "h1")]])
    assert (again.replayed, again.outcome.available) == (True, 0)
    await done(mine, hold(0, "h2"))
    with pytest.raises(IdempotencyConflict):
        await done(mine, hold(91, "h1"))


async def test_group_that_begins_with_a_hold_of_before_does_not_hold_again(mine):
    await done(mine, hold(50, "h1"))
    await done(mine, settle(50, "h1"))
    results = await mine.submit([[hold(50, "h1"), hold(40, "h2")]])
    assert [(result.replayed, result.outcome.available) for result in results] == [(True, 40), (False, 0)]


async def test_hold_of_another_key_that_shows_by_its_name_does_not_hide_its_limits(mine, theirs):
    await done(mine, set_limit(15, scope="key", subject="k1"))
    results = await theirs.submit([[hold(1, "open", key_id="k2")], [hold(1, "h1")]])
    assert isinstance(results[0].outcome, IdempotencyConflict)
    with pytest.raises(LimitExceeded):  # 10 are held
        await done(theirs, hold(6, "h2", key_id="k1"))
    await done(theirs, settle(3, "open"))
    assert (await done(theirs, hold(12, "h3", key_id="k1"))).hold.amount == 12


async def test_hold_that_lapses_while_its_batch_begins_lapses(mine, ledger_settings, monkeypatch):
    Clock(monkeypatch, step=timedelta(seconds=1))
    lasting = range(20, 24)
    for seconds in lasting:  # whichever look at the clock comes first
        await done(mine, hold(1, f"of-{seconds}", ttl_seconds=seconds))
    for number in range(30):
        await done(mine, hold(0, f"h{number}", ttl_seconds=3600))
    found = rows(ledger_settings.database_url, "SELECT hold_id, status FROM holds WHERE hold_id LIKE 'of-%'")
    assert dict(found) == {f"of-{seconds}": "expired" for seconds in lasting}


async def test_account_where_something_is_due_is_remembered_all_the_same(mine, ledger_settings, monkeypatch):
    await done(mine, set_limit(15, scope="key", subject="k1"))
    await done(mine, hold(1, "settled", ttl_seconds=20))
    await done(mine, settle(1, "settled"))
    await done(mine, hold(3, "unnamed", key_id="k1", ttl_seconds=30))
    await done(mine, hold(4, "named", ttl_seconds=30))
    clock = Clock(monkeypatch)
    before, read = batches("remembered"), batches("read")
    for _ in range(5):  # an account that is left alone for longer is the worker's
        clock.wait(seconds=5)  # what was due is settled
        assert (await done(mine, hold(0, f"h{clock.now}", ttl_seconds=3600))).available == 82
    assert (await done(mine, hold(1, "h1", ttl_seconds=3600))).available == 81
    clock.wait(seconds=7)
    late = await done(mine, settle(2, "named"))
    assert (late.was_expired, late.available) == (True, 86)
    # Of the key's 15 the lapsed hold has none; "open" has 10.
    assert (await done(mine, hold(5, "h2", key_id="k1"))).hold.amount == 5
    assert (batches("remembered") - before, batches("read") - read) == (8, 0)
    found = rows(ledger_settings.database_url, "SELECT hold_id FROM holds WHERE status = 'expired' OR was_expired")
    assert {row[0] for row in found} == {"unnamed", "named"}


async def test_account_that_a_worker_has_probably_seen_to_is_read(mine, theirs, monkeypatch):
    await done(mine, hold(1, "settled", ttl_seconds=BUSY_SECONDS))
    await done(mine, settle(1, "settled"))
    clock = Clock(monkeypatch)
    clock.wait(seconds=BUSY_SECONDS)
    await theirs.submit([[touch()]])
    read, outdated = batches("read"), batches("outdated")
    assert (await done(mine, hold(1, "h1"))).available == 88
    assert (batches("read") - read, batches("outdated") - outdated) == (1, 0)


async def test_what_another_replica_let_lapse_meanwhile_lapses_once(mine, theirs, ledger_settings, monkeypatch):
    await done(mine, hold(5, "lapsing", ttl_seconds=7))
    clock = Clock(monkeypatch)
    clock.wait(seconds=7)
    due = loading._load_due

    async def overtaken(*words):
        monkeypatch.setattr(loading, "_load_due", due)
        await due(*words)
        await done(theirs, hold(1, "theirs"))  # lets it lapse, after we have read that it has

    monkeypatch.setattr(loading, "_load_due", overtaken)
    before = batches("outdated")
    assert (await done(mine, hold(1, "h1"))).available == 88
    assert batches("outdated") == before + 1
    (entries,) = rows(ledger_settings.database_url, "SELECT count(*) FROM journal WHERE type = 'hold_expired'")
    assert entries[0] == 1


async def test_hold_that_another_replica_settled_is_settled_once(mine, theirs):
    booked = await done(theirs, settle(7, "open"))
    (again,) = await mine.submit([[settle(7, "open")]])
    assert (again.replayed, again.outcome.available) == (True, booked.available)
    with pytest.raises(IdempotencyConflict):
        await done(mine, settle(8, "open"))


async def test_name_of_a_hold_that_ended_long_ago_is_not_used_again(mine, ledger_settings):
    await done(mine, hold(10, "old"))
    await done(mine, settle(1, "old"))
    async with connected(ledger_settings) as connection:
        await forget_holds(connection, datetime.now(UTC) + timedelta(days=1), BEGINNING)
    before = batches("remembered")
    await done(mine, hold(1, "h1"))
    assert batches("remembered") > before
    with pytest.raises(ResultArchived):
        await done(mine, hold(10, "old"))
    assert (await done(mine, settle(1, "h1"))).available == 88


async def test_group_that_fails_leaves_what_is_remembered_as_it_was(mine):
    for _ in range(2):
        results = await mine.submit([[settle(4, "open"), hold(5000, "h1", key_id="k1")]])
        assert all(isinstance(result.outcome, LedgerError) for result in results)
        assert (await done(mine, hold(1, "h2"))).available == 89
    assert (await done(mine, settle(4, "open"))).available == 95
    assert (await done(mine, settle(1, "h2"))).available == 95


async def test_several_accounts_of_which_one_is_out_of_date_are_each_right(mine, theirs):
    await mine.submit([[opened("other")], [credit(100, "c2", "other")]])
    await mine.submit([[hold(1, "h1")], [hold(1, "h1", "other")]])
    await done(theirs, debit(50, "d1", "other"))
    results = await mine.submit([[hold(1, "h2")], [hold(50, "h2", "other")], [settle(1, "h1", "other")]])
    assert results[0].outcome.available == 88
    assert isinstance(results[1].outcome, InsufficientCredit)
    assert results[2].outcome.available == 49


async def test_replicas_that_write_to_the_same_accounts_at_once_lose_nothing(mine, theirs, ledger_settings):
    names = [f"a{number}" for number in range(4)]
    await mine.submit([[opened(name)] for name in names])
    await mine.submit([[credit(1000, "c1", name)] for name in names])

    async def calls(commits, which, number):
        name = names[number % 4]
        for turn in range(10):
            hold_id = f"{which}-{number}-{turn}"
            assert (await done(commits, hold(5, hold_id, name, key_id="k1"))).hold.amount == 5
            ending = release(hold_id, name) if turn % 2 else settle(3, hold_id, name)
            await done(commits, ending)

    known = batches("remembered")
    work = [calls(commits, which, n) for which, commits in (("m", mine), ("t", theirs)) for n in range(12)]
    await asyncio.gather(*work)
    assert batches("remembered") > known
    found = rows(ledger_settings.database_url, "SELECT available, held, spent FROM accounts WHERE account_id <> 'acme'")
    assert [tuple(account) for account in found] == [(1000 - 90, 0, 90)] * 4


WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


async def waits(asked, url):
    """Until a batch waits for a lock."""
    while not await asyncio.to_thread(rows, url, WAITING):
        assert not asked.done()


async def test_remembered_accounts_are_locked_in_the_order_of_their_ids(mine, ledger_settings):
    names = ["a", "Z", "\u00e4", "b"]  # most languages sort these otherwise
    await mine.submit([[opened(name)] for name in names])
    await mine.submit([[credit(100, "c1", name)] for name in names])
    await mine.submit([[hold(1, "h0", name)] for name in names])
    before = batches("remembered")
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("SELECT FROM accounts WHERE account_id = 'b' FOR UPDATE")
        asked = asyncio.create_task(mine.submit([[hold(1, "h1", name)] for name in ("b", "\u00e4", "a", "Z")]))
        await waits(asked, ledger_settings.database_url)
        free = rows(ledger_settings.database_url, "SELECT account_id FROM accounts FOR UPDATE SKIP LOCKED")
        assert {row[0] for row in free} == {"acme", "\u00e4"}
    assert [result.outcome.available for result in await asked] == [98] * 4
    assert batches("remembered") == before + 1


@pytest.mark.parametrize("names", [["acme"], ["acme", "other"]], ids=["one", "two"])
async def test_wait_for_the_lock_of_what_is_remembered_is_measured(mine, ledger_settings, names):
    await mine.submit([[opened("other")], [credit(100, "c2", "other")]])
    await mine.submit([[hold(1, "h0", name)] for name in ("acme", "other")])
    before, remembered = waited_seconds(), batches("remembered")
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("SELECT FROM accounts FOR UPDATE")
        asked = asyncio.create_task(mine.submit([[hold(1, "h1", name)] for name in names]))
        await waits(asked, ledger_settings.database_url)
        await asyncio.sleep(0.3)
    await asked
    assert batches("remembered") == remembered + 1
    assert waited_seconds() - before >= 0.3


def waited_seconds():
    return REGISTRY.get_sample_value("tollkeeper_ledger_lock_wait_seconds_sum")


async def test_refusal_from_memory_waits_for_nobody(mine, ledger_settings):
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("SELECT FROM accounts FOR UPDATE")
        async with asyncio.timeout(5):
            with pytest.raises(InsufficientCredit):
                await done(mine, hold(5000, "h1"))


@pytest.mark.parametrize("others", [[], [[settle(3, "open")]], [[settle(3, "never")]]], ids=["one", "two", "some-read"])
async def test_change_that_is_under_way_when_a_batch_begins_is_seen(mine, ledger_settings, others):
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("UPDATE accounts SET status = 'suspended'")
        asked = asyncio.create_task(mine.submit([[hold(1, "h1")], *others]))
        await waits(asked, ledger_settings.database_url)
    made, *_ = await asked
    assert isinstance(made.outcome, AccountSuspended)


async def test_change_that_is_under_way_and_comes_to_nothing_changes_nothing(mine, ledger_settings):
    before = batches("remembered")
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("UPDATE accounts SET status = 'suspended'")
        asked = asyncio.create_task(mine.submit([[hold(1, "h1")]]))
        await waits(asked, ledger_settings.database_url)
        connection.rollback()
    (made,) = await asked
    assert made.outcome.available == 89
    assert batches("remembered") == before + 1


@pytest.mark.parametrize("others", [[], [[settle(3, "open")]]], ids=["one", "two"])
async def test_name_of_a_hold_that_is_put_away_while_a_batch_waits_is_not_used_again(mine, ledger_settings, others):
    """As retention puts it away: under the account's lock, and without a change of its row."""
    await done(mine, hold(10, "old"))
    await done(mine, settle(1, "old"))
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("SELECT FROM accounts FOR NO KEY UPDATE")
        connection.execute("DELETE FROM holds WHERE hold_id = 'old'")
        connection.execute("INSERT INTO ended_holds VALUES ('acme', 'old')")
        asked = asyncio.create_task(mine.submit([[hold(10, "old")], *others]))
        await waits(asked, ledger_settings.database_url)
    made, *_ = await asked
    assert isinstance(made.outcome, ResultArchived)


async def test_row_that_was_changed_by_hand_is_read_again(mine, ledger_settings):
    with psycopg.connect(ledger_settings.database_url, autocommit=True) as connection:
        connection.execute("UPDATE accounts SET status = 'suspended'")
    with pytest.raises(AccountSuspended):
        await done(mine, hold(1, "h1"))


async def test_lost_connection_forgets_everything(mine, ledger_settings):
    rows(
        ledger_settings.database_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tollkeeper-ledger-writer'",
    )
    await mine.submit([[hold(1, "h1")]])
    read = batches("read")
    await mine.submit([[settle(1, "open")]])  # of an account that was written since, but not of this hold
    assert batches("read") == read + 1


async def test_what_is_remembered_is_bounded_by_what_it_takes(mine, ledger_settings):
    """An account of many grants and limits counts as many small ones."""
    await mine.submit([[opened("large")], [opened("small")]])
    await mine.submit([[credit(1, f"c{number}", "large")] for number in range(150)])
    await mine.submit([[set_limit(100 + number, "large", scope="key", subject=f"k{number}")] for number in range(20)])
    async with replica(ledger_settings, remembered_rows=200) as commits:
        for account_id in ("small", "large", "large", "small"):
            await done(commits, hold(0, f"h{batches('read')}", account_id))
        known = batches("remembered")
        await done(commits, hold(0, "of-both", "large"))
        await done(commits, hold(0, "of-both", "small"))
        assert batches("remembered") == known + 2
        for number in range(20):
            await done(commits, hold(0, f"k{number}", "large", key_id=f"k{number}"))
        known = batches("remembered")
        await done(commits, hold(0, "again", "small"))
        assert batches("remembered") == known


async def test_nothing_is_remembered_where_none_may_be(ledger_settings):
    async with replica(ledger_settings, remembered_rows=0) as commits:
        await commits.submit([[opened()], [credit(100, "c1")]])
        before = batches("remembered")
        for number in range(3):
            await done(commits, hold(1, f"h{number}"))
        assert batches("remembered") == before


@pytest.fixture
def long_in_doubt(mine, theirs, monkeypatch):
    monkeypatch.setattr(remembered, "_LONGEST_DOUBT_SECONDS", 3600.0)
    monkeypatch.setattr(remembered, "_FIRST_DOUBT_SECONDS", 3600.0)
    for commits in (mine, theirs):
        commits._remembered._doubt_seconds = 3600.0


@pytest.mark.usefixtures("long_in_doubt")
async def test_memory_is_kept_where_others_change_an_account_now_and_then(mine, theirs):
    for number in range(3):
        await done(theirs, credit(1, f"c-{number}"))
        assert (await done(mine, hold(1, f"h-{number}-0"))).available == 90 + number
        before = batches("remembered")
        for again in range(1, 12):
            await done(mine, hold(1, f"h-{number}-{again}"))
        assert batches("remembered") - before == 11
        await done(mine, *(release(f"h-{number}-{again}") for again in range(12)))


@pytest.mark.usefixtures("long_in_doubt")
async def test_account_that_replicas_write_to_by_turns_is_not_remembered(mine, theirs):
    for number in range(20):
        await done((mine, theirs)[number % 2], hold(1, f"h-{number}"))
    remembers = batches("remembered")
    for number in range(20, 25):
        await done(mine, hold(1, f"h-{number}"))
    assert batches("remembered") == remembers
