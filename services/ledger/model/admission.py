"""Owns what a hold is admitted with: how much of what it asks balance and limits leave it, and for how long."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.ledger.errors import InsufficientCredit, LimitExceeded
from services.ledger.model.book import Book, Limit


def admit(
    book: Book,
    limits: list[Limit],
    *,
    amount: int,
    minimum: int,
    tokens: int,
    minimum_tokens: int,
    requests: int,
    billable: bool,
) -> tuple[int, int]:
    """How much money and how many tokens a hold gets: all that is asked, or what balance and limits leave of it.

    `limits` are all that apply, in their present windows. Nothing is changed. Raises InsufficientCredit or
    LimitExceeded where that is below the minimum.
    """
    if billable:
        payable = book.payable
        if payable < minimum:
            raise InsufficientCredit(
                "the balance does not cover this call", availableNanos=book.available, requiredNanos=minimum
            )
        amount = min(amount, payable)
    for limit in limits:
        if limit.mode != "hard":
            continue
        least = minimum if limit.unit == "nanos" else minimum_tokens if limit.unit == "tokens" else requests
        # Even a limit with less than no room lets pass what does not count against it.
        room = max(limit.room, 0)
        if least > room:
            raise limit_exceeded(limit, least, book.touched_at)
        if limit.unit == "nanos":
            amount = min(amount, room)
        elif limit.unit == "tokens":
            tokens = min(tokens, room)
    return amount, tokens


def limit_exceeded(limit: Limit, required: int, now: datetime) -> LimitExceeded:
    """The refusal of a limit, saying which, its use, what was asked and when it resets."""
    lasting = limit.window == "lifetime"
    subject = f" of {limit.scope} {limit.subject}" if limit.subject else f" of the {limit.scope}"
    return LimitExceeded(
        f"the {limit.window} limit{subject} on {limit.unit} is used up: "
        f"{limit.used} used and {limit.held} held of {limit.amount}, {required} asked for",
        retry_after_seconds=None if lasting else (limit.window_end - now).total_seconds(),
        limitId=limit.limit_id,
        amount=limit.amount,
        used=limit.used,
        held=limit.held,
        required=required,
        resetsAt="" if lasting else limit.window_end.isoformat(),
    )


def lapses_at(now: datetime, ttl_seconds: int) -> datetime:
    """When a hold made now lapses."""
    return now + timedelta(seconds=ttl_seconds)
