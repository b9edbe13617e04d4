"""Owns the audit after the load: what the provider was called for is billed, each call once, and nothing stays held."""

import time

from tests.bench.gateway.calls import PRICE_NANOS
from tests.bench.gateway.suite import ACCOUNT, Tested
from tests.bench.ledger import audit as ledger_audit
from tests.bench.support.servers import BenchFailedError

_SETTLED_SECONDS = 60.0
_BILLED = f"""
    SELECT count(*), coalesce(sum(billed), 0), count(*) FILTER (WHERE estimated OR status <> 'ok')
    FROM usage WHERE account_id = '{ACCOUNT}'
"""
_HELD = "SELECT count(*) FROM holds WHERE status = 'open'"
_RELEASED = f"SELECT count(*) FROM holds WHERE account_id = '{ACCOUNT}' AND status = 'released'"
# A hold and its end.
_OPERATIONS_OF_A_CALL = 2


def entries(tested: Tested) -> int:
    """How many entries the journal has now: taken before the load, for the audit after it."""
    return ledger_audit.entries(tested.books)


def require_sound(tested: Tested, *, entries_before: int, answered: int) -> str:
    """What was found, in words. `answered`: the calls that clients saw the end of.

    Raises BenchFailedError where anything does not add up: then nothing that was measured counts.
    """
    _wait_until_settled(tested)
    called = tested.provider_calls()
    records, billed, odd = tested.books.one(_BILLED)
    if called < answered:
        raise BenchFailedError(f"{answered} calls were answered, the provider saw {called}")
    if records != called:
        raise BenchFailedError(f"the provider saw {called} calls, {records} are in the ledger")
    if billed != called * PRICE_NANOS:
        raise BenchFailedError(f"{called} calls at {PRICE_NANOS} nanos are not the {billed} nanos that were billed")
    if odd:
        raise BenchFailedError(f"{odd} calls were estimated or did not end well")
    # Of a client that went away before its call was made: wrk does so at its end.
    (released,) = tested.books.one(_RELEASED)
    operations = _OPERATIONS_OF_A_CALL * (called + released)
    sums = ledger_audit.require_sound(tested.books, entries_before=entries_before, operations=operations)
    return (
        f"{called} calls, each billed once at {PRICE_NANOS} nanos; {released} holds released, none is open; "
        f"{sums}; {tested.verified()}"
    )


def _wait_until_settled(tested: Tested) -> None:
    """A client that went away does not end its calls; they are soon at their end."""
    deadline = time.monotonic() + _SETTLED_SECONDS
    while (held := tested.books.one(_HELD)[0]) > 0:
        if time.monotonic() > deadline:
            raise BenchFailedError(f"{held} holds are still open a minute after the load")
        time.sleep(0.2)
