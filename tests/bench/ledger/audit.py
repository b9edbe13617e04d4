"""Owns the audit after the load: every account's rows add up, and what was answered is booked, no more and no less."""

from tests.bench.ledger.books import Books
from tests.bench.support.servers import BenchFailedError

# Accounts whose row is not what their journal, holds and usage records come to.
_WRONG = """
    WITH booked AS (
        SELECT account_id, count(*) AS entries, max(sequence) AS last, sum(funding) AS funding,
               sum(available) AS available, sum(held) AS held, sum(spent) AS spent, sum(expired) AS expired
        FROM journal GROUP BY account_id
    ), open AS (
        SELECT account_id, sum(amount) AS amount FROM holds WHERE status = 'open' GROUP BY account_id
    ), settled AS (
        SELECT account_id, sum(settled) AS amount, count(*) AS calls
        FROM holds WHERE status = 'settled' GROUP BY account_id
    ), used AS (
        SELECT account_id, count(*) AS records, sum(billed) AS billed FROM usage GROUP BY account_id
    )
    SELECT count(*), min(a.account_id)
    FROM accounts a
    LEFT JOIN booked b USING (account_id) LEFT JOIN open o USING (account_id)
    LEFT JOIN settled s USING (account_id) LEFT JOIN used u USING (account_id)
    WHERE NOT coalesce((
        a.sequence = b.entries AND a.sequence = b.last
        AND a.funded = -b.funding AND a.available = b.available AND a.held = b.held
        AND a.spent = b.spent AND a.expired = b.expired
        AND a.held = coalesce(o.amount, 0)
        AND a.spent = coalesce(s.amount, 0) AND a.spent = coalesce(u.billed, 0)
        AND coalesce(s.calls, 0) = coalesce(u.records, 0)
    ), false)
"""


def entries(books: Books) -> int:
    """How many entries the journal has."""
    return int(books.one("SELECT count(*) FROM journal")[0])


def require_sound(books: Books, *, entries_before: int, operations: int) -> str:
    """What was found, in words. Each operation of the load is one entry.

    Raises BenchFailedError where anything does not add up: then nothing that was measured counts.
    """
    wrong, first = books.one(_WRONG)
    if wrong:
        raise BenchFailedError(f"{wrong} accounts do not add up after the load, {first} first")
    booked = entries(books) - entries_before
    if booked != operations:
        raise BenchFailedError(f"{operations} operations were answered, {booked} entries were booked")
    (accounts,) = books.one("SELECT count(*) FROM accounts")
    return f"{accounts} accounts add up, with {booked} entries for {operations} answered operations"
