"""Owns the SQL of exports: a time's usage records or transactions of one account, oldest first, however many.

Both use their table's key, a partition a month.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Select, Text, select

from services.ledger import tables
from services.ledger.model.operations import HOLD_MOVES
from services.ledger.store.history import entries

WHAT = ("usage", "transactions")

# Read from the database at once: small, so that a large export does not keep a server's other calls waiting.
BATCH_ROWS = 500


def export_query(what: str, account_id: str, start: datetime, end: datetime) -> Select[Any]:
    """The rows booked in `[start, end)`: the table's columns, of transactions also `undone`, no movements of holds."""
    if what == "usage":
        table, number, document = tables.usage, tables.usage.c.usage_number, tables.usage.c.units
        query: Select[Any] = select(table).where(table.c.account_id == account_id)
    else:
        assert what == "transactions", what
        table, number, document = tables.journal, tables.journal.c.sequence, tables.journal.c.grant_uses
        query = entries(account_id).where(table.c.type.not_in(HOLD_MOVES))
    # A document goes as the text it is: nothing here looks into it.
    columns = [column for column in query.selected_columns if column.name != document.name]
    columns.append(document.cast(Text).label(f"{document.name}_json"))
    query = query.with_only_columns(*columns, maintain_column_froms=True)
    return query.where(table.c.created_at >= start, table.c.created_at < end).order_by(number)
