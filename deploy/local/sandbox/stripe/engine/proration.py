"""Owns proration: the credit for time paid and not used, and the charge for time to come, to the second. No I/O.

Source: docs.stripe.com/billing/subscriptions/prorations, and for what is credited the flexible billing mode: a credit
is a share of what was really debited for the period, so time that nobody was debited for is not credited.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from deploy.local.sandbox.stripe import money
from deploy.local.sandbox.stripe.refusal import Obj


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One prorated amount in cents, negative for a credit, and the time it is for."""

    amount: int
    start: int
    end: int
    # The invoice and lines that a credit gives back, where they are known.
    credited: Obj | None = None


def debit(amount: int, start: int, end: int, invoice: str | None = None, lines: Sequence[str] = ()) -> Obj:
    """What an item keeps of an amount that it was debited for a span of time."""
    return {"amount": amount, "start": start, "end": end, "invoice": invoice, "lines": list(lines)}


def credits_for(debits: Sequence[Obj], at: int) -> list[Part]:
    """The unused parts of `debits` from `at` on."""
    parts = []
    for entry in debits:
        start, end = max(at, entry["start"]), entry["end"]
        if start < end and entry["amount"]:
            amount = money.share(entry["amount"], end - start, end - entry["start"])
            credited = {"invoice": entry["invoice"], "invoice_line_items": entry["lines"]} if entry["invoice"] else None
            parts.append(Part(amount=-amount, start=start, end=end, credited=credited))
    return parts


def charge_for(full: int, period: tuple[int, int], at: int) -> Part:
    """The part of a period's `full` amount from `at` to the period's end."""
    return Part(amount=money.share(full, period[1] - at, period[1] - period[0]), start=at, end=period[1])
