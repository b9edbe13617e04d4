"""Group commit against a real Postgres: what is answered is committed, once, whatever goes wrong on the way."""

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from services.kit.db import async_engine
from services.kit.refusals import Overloaded, StorageUnavailable
from services.ledger import writer
from services.ledger.errors import InsufficientCredit
from services.ledger.group_commit import GroupCommit
from services.ledger.model.book import Book
from services.ledger.model.windows import add_months
from services.ledger.service import Ledger
from services.ledger.store.partitions import create_months
from services.ledger.store.reads import Reads
from services.ledger.store.remembered import Remembered
from services.ledger.worker import make_partitions
from tests.ledger.support.ledger_audit import audit, rows
from tests.ledger.support.ledger_memory import credit, hold, opened, set_limit, settle, touch


@pytest.fixture
async def commits(ledger_settings):
    """A group commit with one writer, on an account with 100."""
    commits = GroupCommit(ledger_settings.model_copy(update={"writers": 1}))
    commits.start()
    await commits.submit([[opened()], [credit(100, "c1")]])
    yield commits
    await commits.stop()


@pytest.fixture
async def reads(ledger_settings):
    engine = async_engine(ledger_settings)
    yield Reads(engine)
    await engine.dispose()


def once(monkeypatch, action):
    """Let the next write of a batch be `action(the real write, its arguments)`."""
    real = writer.write
    left = [action]

    async def write(connection, changes, *others, **words):
        if left:
            return await left.pop()(lambda *first: real(*first, *others, **words), connection, changes)
        return await real(connection, changes, *others, **words)

    monkeypatch.setattr(writer, "write", write)


async def test_commit_whose_answer_was_lost_is_not_done_twice(commits, monkeypatch, ledger_settings):
    async def committed_then_lost(real, connection, changes):
        await real(connection, changes)
        await connection.close()
        raise psycopg.OperationalError("the connection broke after COMMIT was sent")

    once(monkeypatch, committed_then_lost)
    results = await commits.submit([[hold(60, "h1")], [settle(50, "h1")], [credit(5, "c2")]])
    assert [result.outcome.available for result in results[:2]] == [40, 50]
    assert results[2].outcome.entry.balance_after == 55
    (entries,) = audit(ledger_settings.database_url).values()
    assert [entry.type for entry in entries] == ["credit_purchase", "hold", "usage_deduction", "credit_purchase"]


async def test_connection_lost_before_the_commit_is_made_again(commits, monkeypatch, ledger_settings):
    async def lost(_real, connection, _changes):
        url = ledger_settings.database_url
        rows(url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        await connection.execute("SELECT 1")

    once(monkeypatch, lost)
    (result,) = await commits.submit([[hold(60, "h1")]])
    assert (result.outcome.available, result.replayed) == (40, False)


async def test_writer_does_not_stay_with_a_database_that_only_reads(commits, ledger_settings):
    """As after a fail-over, where the name still leads to the old primary: a standby takes connections, no writes."""
    url = ledger_settings.database_url
    (name,) = rows(url, "SELECT current_database()")[0]
    setting = f'ALTER DATABASE "{name}" %s default_transaction_read_only'
    with psycopg.connect(url, autocommit=True) as operator:
        operator.execute(f"{setting % 'SET'} = on")
        operator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ 'writer$'")
        refused = await asyncio.gather(commits.submit([[hold(60, "h1")]]), return_exceptions=True)
        operator.execute("SET default_transaction_read_only = off")
        operator.execute(setting % "RESET")
    assert [type(each) for each in refused] == [StorageUnavailable]
    (result,) = await commits.submit([[hold(60, "h1")]])
    assert (result.outcome.available, result.replayed) == (40, False)


async def test_writer_leaves_a_server_that_takes_no_writes_any_more(commits):
    """As after a fail-over that leaves connections standing: what was the primary goes on answering, as a standby."""
    (writer,) = commits._writers
    await writer._connection.execute("SET default_transaction_read_only = on")
    (result,) = await commits.submit([[hold(60, "h1")]])
    assert (result.outcome.available, result.replayed) == (40, False)


async def test_caller_that_goes_away_leaves_its_neighbours_their_answers(commits, monkeypatch, ledger_settings):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(real, connection, changes):
        begun.set()
        await go_on.wait()
        return await real(connection, changes)

    once(monkeypatch, slow)
    units = [asyncio.create_task(commits.submit([[hold(10, f"h{number}")]])) for number in range(3)]
    await begun.wait()
    late = [asyncio.create_task(commits.submit([[hold(10, f"late{number}")]])) for number in range(2)]
    await asyncio.sleep(0)
    units[1].cancel()
    late[0].cancel()
    await asyncio.sleep(0)
    go_on.set()
    answers = await asyncio.gather(*units, *late, return_exceptions=True)
    assert [type(answer) for answer in answers] == [
        list, asyncio.CancelledError, list, asyncio.CancelledError, list,
    ]  # fmt: skip
    made = {row.hold_id for row in rows(ledger_settings.database_url, "SELECT hold_id FROM holds")}
    assert made == {"h0", "h1", "h2", "late1"}  # what a batch had begun is done, what only waited is not


async def test_unit_that_breaks_its_batch_fails_alone(commits, monkeypatch, ledger_settings):
    real = Book.reserve

    def reserve(book, amount):
        if amount == 13:
            raise ZeroDivisionError
        return real(book, amount)

    monkeypatch.setattr(Book, "reserve", reserve)
    units = [commits.submit([[hold(amount, f"h{amount}")]]) for amount in (1, 2, 13, 3, 4, 500)]
    answers = await asyncio.gather(*units, return_exceptions=True)
    assert isinstance(answers.pop(2), ZeroDivisionError)
    assert [answer[0].outcome.available for answer in answers[:4]] == [99, 97, 94, 90]
    assert isinstance(answers[4][0].outcome, InsufficientCredit)
    audit(ledger_settings.database_url)


async def test_account_that_somebody_locks_does_not_stop_the_others(ledger_settings):
    settings = ledger_settings.model_copy(update={"writers": 1, "statement_timeout_seconds": 0.3})
    commits = GroupCommit(settings)
    commits.start()
    await commits.submit([[opened(name)] for name in ("a", "b", "c")])
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("SELECT 1 FROM accounts WHERE account_id = 'b' FOR UPDATE")
        units = [commits.submit([[credit(5, "c1", name)]]) for name in ("a", "b", "c")]
        answers = await asyncio.gather(*units, return_exceptions=True)
    assert isinstance(answers[1], StorageUnavailable)
    assert [answer[0].outcome.entry.balance_after for answer in (answers[0], answers[2])] == [5, 5]
    assert (await commits.submit([[credit(5, "c1", "b")]]))[0].outcome.entry.balance_after == 5
    await commits.stop()


async def test_answer_leaves_before_its_batch_is_noted_and_the_next_batch_of_the_account_begins_after(
    commits, monkeypatch
):
    happened = []

    def said(cls, name):
        real = getattr(cls, name)

        def say(*arguments):
            happened.append(name)
            return real(*arguments)

        monkeypatch.setattr(cls, name, say)

    said(Remembered, "take")
    said(Remembered, "put")
    for number in range(2):
        await commits.submit([[hold(10, f"h{number}")]])
        happened.append("answered")
    await commits.stop()
    assert happened == ["take", "answered", "put"] * 2


async def test_batch_that_cannot_be_noted_is_answered_once_and_its_account_is_read_again(
    commits, monkeypatch, ledger_settings
):
    with monkeypatch.context() as broken:
        broken.setattr(Remembered, "put", lambda *_: 1 / 0)
        answers = [(await commits.submit([[hold(10, f"h{number}")]]))[0] for number in range(3)]
    assert [(answer.replayed, answer.outcome.available) for answer in answers] == [
        (False, 90),
        (False, 80),
        (False, 70),
    ]
    (result,) = await commits.submit([[hold(10, "h3")]])
    assert result.outcome.available == 60
    assert not any(answer.replayed for answer in (*answers, result))
    audit(ledger_settings.database_url)


async def test_stop_commits_what_waits_and_takes_no_more(ledger_settings):
    commits = GroupCommit(ledger_settings)
    commits.start()
    await commits.submit([[opened()]])
    waiting = [asyncio.create_task(commits.submit([[credit(1, f"c{number}")]])) for number in range(150)]
    await asyncio.sleep(0)
    await commits.stop()
    assert all(len(answer) == 1 for answer in await asyncio.gather(*waiting))
    assert rows(ledger_settings.database_url, "SELECT available FROM accounts") == [(150,)]
    with pytest.raises(StorageUnavailable):
        await commits.submit([[touch()]])


async def test_database_that_is_away_is_said_so_and_stop_does_not_wait_for_it(ledger_settings, monkeypatch):
    monkeypatch.setattr(writer, "_RETRY_SECONDS", (0.01,))
    url = ledger_settings.database_url.rsplit("@", 1)[0] + "@127.0.0.1:1/nowhere"
    commits = GroupCommit(ledger_settings.model_copy(update={"database_url": url}))
    commits.start()
    units = [commits.submit([[credit(1, f"c{number}")]]) for number in range(10)]
    answers = await asyncio.gather(*units, return_exceptions=True)
    assert all(isinstance(answer, StorageUnavailable) for answer in answers)
    await asyncio.wait_for(commits.stop(), 5)


async def test_more_than_may_wait_is_refused(ledger_settings):
    commits = GroupCommit(ledger_settings.model_copy(update={"max_queued": 2}))
    waiting = [asyncio.create_task(commits.submit([[touch()]])) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await commits.submit([[touch()]])
    commits.start()
    await asyncio.gather(*waiting)
    await commits.stop()


async def test_two_replicas_open_the_same_account_once(ledger_settings):
    replicas = [GroupCommit(ledger_settings) for _ in range(2)]
    for replica in replicas:
        replica.start()
    names = [f"a{number}" for number in range(40)]
    orders = (names, names[::-1])
    units = [
        replica.submit([[opened(name)], [credit(5, "c1", name)]])
        for replica, order in zip(replicas, orders, strict=True)
        for name in order
    ]
    answers = await asyncio.gather(*units)
    assert all(answer[1].outcome.entry.balance_after == 5 for answer in answers)
    assert rows(ledger_settings.database_url, "SELECT DISTINCT available FROM accounts") == [(5,)]
    for replica in replicas:
        await replica.stop()


async def test_hold_lapses_although_another_replicas_clock_is_ahead(commits, reads, ledger_settings):
    await commits.submit([[set_limit(90)], [hold(60, "h1", ttl_seconds=5)]])
    with psycopg.connect(ledger_settings.database_url) as connection:  # as a replica with another clock leaves it
        connection.execute("UPDATE accounts SET touched_at = now() + interval '1 minute'")
    await commits.submit([[touch()]])
    book = await reads.account("acme")
    assert (book.available, book.held, book.limits[0].held) == (100, 0, 0)
    audit(ledger_settings.database_url)


async def test_account_where_nothing_can_happen_keeps_no_other_from_it(commits, reads, ledger_settings):
    await commits.submit([[opened("sick")], [credit(9, "c1", "sick")]])
    await commits.submit([[hold(5, "h1", ttl_seconds=1)], [hold(5, "h1", "sick", ttl_seconds=1)]])
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("UPDATE accounts SET next_event_at = now() - interval '1 minute'")
        connection.execute("UPDATE holds SET expires_at = now() - interval '1 minute'")
        connection.execute("""UPDATE holds SET reservations = '[["no-such-grant", 5]]' WHERE account_id = 'sick'""")
    with pytest.raises(KeyError):
        await Ledger(commits, reads).sweep(10)
    assert ((await reads.account("acme")).held, (await reads.account("sick")).held) == (0, 5)


async def test_month_that_began_without_its_partition_does_not_stop_the_start(ledger_settings, commits, reads):
    url = ledger_settings.database_url
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TEMPORARY TABLE later AS SELECT * FROM journal")
        connection.execute("UPDATE later SET created_at = created_at + interval '2 months'")
        connection.execute("INSERT INTO journal SELECT * FROM later")
    await make_partitions(ledger_settings)
    made = {row[0] for row in rows(url, "SELECT relname FROM pg_class WHERE relname ~ '^journal_[0-9]{4}_[0-9]{2}$'")}
    now = datetime.now(UTC)  # this month's and the one after next's first rows were there before
    assert made == {f"journal_{add_months(now, ahead):%Y_%m}" for ahead in (1, 3)}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        assert await create_months(connection, datetime.now(UTC)) == []
        assert len(await create_months(connection, datetime.now(UTC) + timedelta(days=80))) > 0


async def test_locked_account_keeps_no_other_waiting_for_long(ledger_settings):
    commits = GroupCommit(ledger_settings.model_copy(update={"statement_timeout_seconds": 30}))
    commits.start()
    await commits.submit([[opened(name)] for name in ("locked", "a", "b", "c")])
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("SELECT 1 FROM accounts WHERE account_id = 'locked' FOR UPDATE")
        waiting = asyncio.create_task(commits.submit([[credit(1, "c", "locked")]]))
        await asyncio.sleep(0)  # its batch begins
        others = [commits.submit([[credit(1, "c", name)]]) for name in ("a", "b", "c")]
        async with asyncio.timeout(10):
            await asyncio.gather(*others)
        assert not waiting.done()
    await waiting
    await commits.stop()


async def test_call_that_asks_for_nothing_is_answered(commits):
    assert await commits.submit([]) == []


async def test_stop_waits_for_what_waits_for_a_busy_account(ledger_settings):
    commits = GroupCommit(ledger_settings.model_copy(update={"writers": 3}))
    commits.start()
    await commits.submit([[opened()]])
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("SELECT 1 FROM accounts FOR UPDATE")
        first = asyncio.create_task(commits.submit([[credit(1, "c1")]]))
        await asyncio.sleep(0)  # its batch begins
        behind = asyncio.create_task(commits.submit([[credit(1, "c2")]]))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(commits.stop())
        done, _ = await asyncio.wait([first, behind, stopping], timeout=0.2)
        assert not done
    async with asyncio.timeout(10):
        answers = [(await first)[0], (await behind)[0]]
        await stopping
    assert [answer.outcome.entry.balance_after for answer in answers] == [1, 2]
