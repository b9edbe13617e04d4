"""Owns how tests put a real ledger's past into its database: batches that are run and written as of another time."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime

import orjson
import psycopg
from psycopg.types.json import set_json_loads

from services.ledger.model.batch import Batch
from services.ledger.model.windows import add_months
from services.ledger.store.loading import load
from services.ledger.store.partitions import create_months
from services.ledger.store.writing import write


def months_ago(count, day=10):
    """The 10th of a month before this one, at noon."""
    now = datetime.now(UTC)
    return add_months(datetime(now.year, now.month, day, 12, tzinfo=UTC), -count)


@asynccontextmanager
async def connected(settings):
    url, options = settings.database_url, "-c timezone=UTC"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, options=options) as connection:
        set_json_loads(orjson.loads, connection)
        yield connection


async def make_past(connection, count):
    """The partitions of `count` months before this one, as a worker would have made them in time."""
    await create_months(connection, months_ago(count), ahead=count + 3)


async def happened(connection, moment, *operations, slot=0):
    """Do operations, each by itself, as of a past moment; their outcomes. Times of an account must not go back."""
    loaded = await load(connection, operations, moment)
    batch = Batch(loaded, moment)
    results = [result for operation in operations for result in batch.run([operation])]
    await write(connection, batch.changes, slot)
    return [result.outcome for result in results]
