"""Owns the SQL of what is due: at which accounts the worker lets happen what nobody else has."""

from __future__ import annotations

# A hold's end leaves its account due at the time when the hold would have lapsed, and most such holds were settled long
# before. The next operation of the account lets happen what is due, whatever it is. A worker that came before would
# change the account under the server that remembers it, which then does a batch again. So an account that had an
# operation in the last few seconds is left to its next one, unless that has not come after a minute.
BUSY_SECONDS = 10
OVERDUE_SECONDS = 60


def due_accounts(now: str) -> str:
    """The query of ids of accounts where something is due at `now`, a term of SQL, and since when; the longest first.

    Uses the index accounts_due.
    """
    return f"""
        SELECT account_id, next_event_at FROM accounts
        WHERE next_event_at <= {now} AND (
            touched_at <= {now} - interval '{BUSY_SECONDS} seconds'
            OR next_event_at <= {now} - interval '{OVERDUE_SECONDS} seconds'
        )
        ORDER BY next_event_at
    """  # noqa: S608 (all of it is our own)
