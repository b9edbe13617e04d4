"""The schema: what the migrations leave is what the tables say."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from services.kit.db import parsed_url
from services.ledger.tables import metadata


def test_migrations_leave_the_tables_that_the_code_knows(database_url, ledger_template):
    engine = create_engine(parsed_url(database_url("ledger", template=ledger_template)))
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
    engine.dispose()
    # Partitions, and their parts of an index, are made by Postgres.
    partitions = {"journal_default", "usage_default", "usage_default_feed_slot_feed_position_idx"}
    assert [d for d in differences if getattr(d[1], "name", "") not in partitions] == []
