"""Owns how much credit a payment gives, in which grants, and how much of them is taken back. Pure.

**An invoice.** Each line for a plan's own price is worth its amount times credit ÷ price: of a monthly price the credit
that the plan's price pays for, of a yearly one twelve times that. Lines are added up as exact fractions, prorations and
what is given back too, and rounded once, half-even; less than nothing is nothing. One grant, until the period that the
lines cover ends; for a year one grant for each month, counted back from its end, all as equal as nanos allow.

**A top-up** is worth what was paid, and does not expire.

**An invoice that gives back more than it brings** (a change to a cheaper plan, or an end, that was prorated) returns
the money to the customer's balance, from which the next invoice is paid and gives credit: so its credit is taken back,
of what is still to be granted first, then of what was, the newest first.

**What was returned** (refunds, disputes unless they are won, and credit notes, be it to the customer's balance, from
which the next invoice is paid, or of what was still to be paid) takes back the same share of the credit: first what is
still to be granted, the last part first, then what was granted, the last first. What comes back to us is granted again;
once the credit has expired, only so much of it as was spent, and was therefore taken of other credit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction

from services.subscriptions.model.cycle import cycle_at, months_after
from services.subscriptions.model.plan import Plan, annual_price_nanos
from services.subscriptions.stripe.model import (
    CreditPart,
    InvoiceLine,
    PaidInvoice,
    PaidSource,
    PaidTopUp,
    Payment,
    PlanKey,
)
from services.subscriptions.stripe.names import NANOS_PER_CENT, YEAR

SUBSCRIPTION, PURCHASE = "subscription", "purchase"
INVOICE = "invoice"
_MONTHS_PER_YEAR = 12
# A year has twelve months; what begins within one brings a part of it.
_MAX_PARTS = 12

Plans = Mapping[PlanKey, Plan]


@dataclass(frozen=True, slots=True)
class Credit:
    """A payment with its grants; `excess_nanos` is what its lines give back beyond what they bring."""

    payment: Payment
    parts: tuple[CreditPart, ...]
    excess_nanos: int = 0


def plans_named(source: PaidSource) -> set[PlanKey]:
    """The plan versions that have to be known to tell what a payment is worth."""
    return {line.plan for line in source.lines} if isinstance(source, PaidInvoice) else set()


def credit_of(account_id: str, source: PaidSource, plans: Plans, *, now: datetime) -> Credit:
    """What a payment gives, whatever else is known of the account."""
    if isinstance(source, PaidTopUp):
        return _top_up(account_id, source, now)
    worth = sum((line_credit(line, plans[line.plan]) for line in source.lines), Fraction(0))
    nanos = round(worth)
    payment = Payment(
        source_id=source.invoice_id,
        account_id=account_id,
        kind=INVOICE,
        amount_nanos=source.amount_nanos,
        credit_nanos=max(0, nanos),
        paid_at=source.paid_at,
    )
    if nanos <= 0:
        return Credit(payment, (), excess_nanos=-nanos)
    return Credit(payment, _invoice_parts(payment, source.lines, plans, now))


def in_order(sources: Iterable[PaidSource]) -> list[PaidSource]:
    """Payments as they were made; of the same second those first that give back nothing."""
    return sorted(sources, key=lambda source: (source.paid_at, source.amount_nanos < 0))


def line_credit(line: InvoiceLine, plan: Plan) -> Fraction:
    """What one line is worth in nanos, exactly: nothing but on plans that sell credit by subscription."""
    if plan.kind != "subscription":
        return Fraction(0)
    yearly = line.interval == YEAR
    price = annual_price_nanos(plan) if yearly else plan.price_nanos
    credit = plan.paid_credit_nanos * (_MONTHS_PER_YEAR if yearly else 1)
    return Fraction(line.amount_nanos * credit, price) if price > 0 else Fraction(0)


def _top_up(account_id: str, source: PaidTopUp, now: datetime) -> Credit:
    payment = Payment(
        source_id=source.payment_intent_id,
        account_id=account_id,
        kind=source.purpose,
        amount_nanos=source.amount_nanos,
        credit_nanos=source.amount_nanos,
        paid_at=source.paid_at,
    )
    part = CreditPart(
        account_id=account_id,
        request_id=f"payment:{source.payment_intent_id}",
        source_id=source.payment_intent_id,
        part=1,
        source=PURCHASE,
        amount_nanos=source.amount_nanos,
        due_at=now,
        expires_at=None,
        rollover_cap_nanos=0,
    )
    return Credit(payment, (part,) if source.amount_nanos > 0 else ())


def _invoice_parts(
    payment: Payment, lines: Sequence[InvoiceLine], plans: Plans, now: datetime
) -> tuple[CreditPart, ...]:
    bringing = [line for line in lines if line.amount_nanos > 0]
    start = min(line.period_start for line in bringing)
    end = max(line.period_end for line in bringing)
    is_yearly = any(line.interval == YEAR for line in bringing)
    starts = month_starts(start, end) if is_yearly else [start]
    ends = [*starts[1:], end]
    count = len(starts)
    largest = max(bringing, key=lambda line: line.amount_nanos)
    return tuple(
        CreditPart(
            account_id=payment.account_id,
            request_id=f"invoice:{payment.source_id}:{number}" if is_yearly else f"invoice:{payment.source_id}",
            source_id=payment.source_id,
            part=number,
            source=SUBSCRIPTION,
            amount_nanos=payment.credit_nanos * number // count - payment.credit_nanos * (number - 1) // count,
            due_at=now if number == 1 else starts[number - 1],
            expires_at=ends[number - 1],
            rollover_cap_nanos=plans[largest.plan].rollover_cap_nanos,
        )
        for number in range(1, count + 1)
    )


def month_starts(start: datetime, end: datetime) -> list[datetime]:
    """`start`, and each moment after it that is whole months before `end`."""
    before_end = (months_after(end, -months) for months in range(_MAX_PARTS - 1, 0, -1))
    return [start, *(moment for moment in before_end if moment > start)]


def lasting(part: CreditPart, cycle_anchor: datetime, now: datetime) -> CreditPart:
    """A part as it is granted now: what was paid too late for its own cycle lasts to the present one's end."""
    if part.expires_at is None or part.expires_at > now:
        return part
    return replace(part, expires_at=cycle_at(cycle_anchor, now).end)


def wanted_nanos(payment: Payment) -> int:
    """What of a payment's credit is to be left after what was returned, rounded half-even."""
    if payment.amount_nanos <= 0:
        return payment.credit_nanos
    returned = sum(payment.returned.values()) * NANOS_PER_CENT
    kept = Fraction(max(0, payment.amount_nanos - returned), payment.amount_nanos)
    return round(payment.credit_nanos * kept)


def adjusted(parts: Iterable[CreditPart], wanted: int, *, now: datetime) -> list[CreditPart]:
    """The parts that change, and the new one, for `wanted` nanos to be left of them all together.

    What was granted is only ever taken back; to give again is a part of its own, which lasts as long as the last one.
    """
    known = sorted(parts, key=lambda part: part.part)
    surplus = sum(part.left_nanos for part in known) - wanted
    if surplus > 0:
        last_first = sorted(known, key=lambda part: (part.granted_at is not None, -part.part))
        return _taken(last_first, surplus)
    if surplus < 0:
        return _given_again(known, -surplus, now)
    return []


def without_returned(parts: Iterable[CreditPart], excess: int) -> list[CreditPart]:
    """The parts that change when an invoice gives back `excess` nanos: to be granted first, the last ones first."""
    last_first = sorted(parts, key=lambda part: (part.due_at, part.part), reverse=True)
    return _taken(sorted(last_first, key=lambda part: part.granted_at is not None), excess)


def _taken(parts: Sequence[CreditPart], surplus: int) -> list[CreditPart]:
    changed = []
    for part in parts:
        taken = min(surplus, part.left_nanos)
        if taken > 0:
            changed.append(_take(part, taken))
            surplus -= taken
    return changed


def _take(part: CreditPart, nanos: int) -> CreditPart:
    return replace(part, taken_back_nanos=part.taken_back_nanos + nanos, times_taken_back=part.times_taken_back + 1)


def _given_again(known: Sequence[CreditPart], missing: int, now: datetime) -> list[CreditPart]:
    changed = []
    for part in known:
        returned = min(missing, part.taken_back_nanos) if part.granted_at is None else 0
        if returned > 0:
            changed.append(_take(part, -returned))
            missing -= returned
    if missing > 0 and known:
        changed += _again(known, missing, now)
    return changed


def _again(known: Sequence[CreditPart], missing: int, now: datetime) -> list[CreditPart]:
    """The part that gives `missing` again; of what has expired that, and a part for the rest, which is not granted."""
    last = known[-1]
    again = replace(
        last,
        part=last.part + 1,
        request_id=_again_id(known, last.part),
        amount_nanos=missing,
        taken_back_nanos=0,
        times_taken_back=0,
        due_at=now,
        granted_at=None,
        taken_elsewhere_nanos=0,
    )
    changed, spent = [], 0
    for part in known:
        back = min(missing - spent, part.taken_elsewhere_nanos)
        if back > 0:
            changed.append(replace(part, taken_elsewhere_nanos=part.taken_elsewhere_nanos - back))
            spent += back
    if last.expires_at is None or last.expires_at > now:
        return [*changed, again]
    if spent > 0:
        changed.append(replace(again, amount_nanos=spent))
    if missing > spent:
        number = again.part + (spent > 0)
        lapsed = replace(again, part=number, request_id=_again_id(known, number - 1), amount_nanos=missing - spent)
        changed.append(replace(lapsed, granted_at=now))
    return changed


def _again_id(known: Sequence[CreditPart], number: int) -> str:
    base = known[0].request_id.removesuffix(":1")
    return f"{base}:again:{number}"
