"""Owns how tests put a real ledger's past into its database: batches that are run and written as of another time."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from services.ledger.model.batch import Batch
from services.ledger.model.windows import add_months
from services.ledger.store.loading import load
from services.ledger.store.partitions import create_months
from services.ledger.store.pipeline import Connection
from services.ledger.store.writing import write
from tests.ledger.support.ledger_memory import (
    adjust,
    credit,
    debit,
    hold,
    opened,
    release,
    settle,
    touch,
    usage,
)


def months_ago(count):
    """The 10th of a month before this one, at noon."""
    now = datetime.now(UTC)
    return add_months(datetime(now.year, now.month, 10, 12, tzinfo=UTC), -count)


@asynccontextmanager
async def connected(settings):
    url, options = settings.database_url, "-c timezone=UTC"
    async with await Connection.opened(url, options=options) as connection:
        yield connection


async def make_past(connection, count):
    """The partitions of `count` months before this one, as a worker would have made them in time."""
    await create_months(connection, months_ago(count), ahead=count + 3)


async def happened(connection, moment, *operations, slot=0):
    """Do operations, each in a batch of its own, as of a past moment; their outcomes. No account's time goes back."""
    outcomes = []
    for operation in operations:
        batch = Batch(await load(connection, [operation], moment, {}), moment)
        (result,) = batch.run([operation])
        await write(connection, batch.changes, slot, {})
        outcomes.append(result.outcome)
    return outcomes


THREE, TWO = months_ago(3), months_ago(2)


async def two_old_months(connection):
    """Two accounts with a past: what was spent three and two months ago, and this one's holds."""
    await happened(
        connection, THREE, opened("acme"), credit(1000, "c1", "acme"), credit(500, "c2", "acme"),
        opened("bert"), credit(70, "c1", "bert"), opened("idle"),
    )  # fmt: skip
    hour = timedelta(hours=1)
    await happened(
        connection, THREE + hour, hold(100, "h1", "acme", key_id="k1"), hold(50, "h2", "acme"), release("h2", "acme"),
        settle(90, "h1", "acme", tokens=7, usage=usage(provider="openai", units={"images": 2})),
        debit(20, "d1", "bert", tokens=3),
    )  # fmt: skip
    await happened(connection, TWO, debit(910, "d2", "acme", key_id="k2", tokens=11), adjust(-5, "a1", "acme"))
    await happened(connection, TWO + hour, hold(30, "h3", "acme"), settle(30, "h3", "acme", tokens=1))
    await happened(connection, TWO + 2 * hour, touch("acme"))  # as the worker does
