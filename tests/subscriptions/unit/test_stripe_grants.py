from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.subscriptions.model.cycle import months_after
from services.subscriptions.model.plan import Plan, annual_price_nanos
from services.subscriptions.stripe.grants import (
    adjusted,
    credit_of,
    in_order,
    lasting,
    line_credit,
    month_starts,
    wanted_nanos,
    without_returned,
)
from services.subscriptions.stripe.model import InvoiceLine, PaidInvoice, PaidTopUp, PlanKey
from services.subscriptions.stripe.names import MONTH, NANOS_PER_CENT, YEAR

USD = 1_000_000_000
NOW = datetime(2026, 11, 21, 10, 30, tzinfo=UTC)
MONTH_END = datetime(2026, 12, 21, 10, 30, tzinfo=UTC)


def plan(plan_id="starter", *, price=19 * USD, credit=3_800_000_000, promotion=0, kind="subscription", discount=1500):
    return Plan(
        plan_id=plan_id, version=1, display_name="", kind=kind, price_nanos=price,
        annual_discount_basis_points=discount, promotional_grant_nanos=promotion, credit_nanos=credit,
        tokens_per_cycle=0, requests_per_cycle=0, max_tokens_per_request=0, requests_per_minute=0,
        tokens_per_minute=0, providers=(), models=(), multiplier_millionths=0, overage_nanos_per_million_tokens=0,
        metrics=(), rollover_cap_nanos=0, warn_percent=0, retired=False,
    )  # fmt: skip


PLANS = {
    PlanKey("starter", 1): plan(),
    PlanKey("professional", 1): plan("professional", price=99 * USD, credit=19_800_000_000),
    PlanKey("odd", 1): plan("odd", price=7 * USD, credit=1_234_567_891, promotion=91),
}


def line(cents=1900, plan_id="starter", interval=MONTH, start=NOW, end=MONTH_END):
    return InvoiceLine(PlanKey(plan_id, 1), interval, cents * NANOS_PER_CENT, start, end)


def invoice(*lines, total=None):
    amount = sum(one.amount_nanos for one in lines) if total is None else total * NANOS_PER_CENT
    return PaidInvoice("in_1", amount, NOW, lines)


def credit(source):
    return credit_of("acme", source, PLANS, now=NOW)


# What a payment gives


def test_a_months_price_gives_the_plans_credit_until_the_month_ends():
    given_ = credit(invoice(line()))
    (part,) = given_.parts
    assert (part.amount_nanos, part.request_id, part.expires_at) == (3_800_000_000, "invoice:in_1", MONTH_END)
    assert (given_.payment.credit_nanos, given_.payment.amount_nanos) == (3_800_000_000, 19 * USD)


def test_tax_and_metered_use_give_nothing():
    assert credit(invoice(line(), total=2500)).payment.credit_nanos == 3_800_000_000
    assert line_credit(line(), plan(kind="metered")) == 0
    assert line_credit(line(), plan(price=0)) == 0


def test_promotion_is_no_part_of_what_is_paid_for():
    assert line_credit(line(), plan(promotion=800_000_000)) == 3 * USD


def test_prorations_are_added_up_and_rounded_once():
    (part,) = credit(invoice(line(-1287), line(6706, "professional"))).parts
    assert part.amount_nanos == (6706 - 1287) * NANOS_PER_CENT // 5


def test_half_a_nano_is_rounded_to_even():
    halves = {PlanKey("half", 1): plan("half", price=2 * NANOS_PER_CENT, credit=1)}
    worth = [credit_of("a", invoice(line(cents, "half")), halves, now=NOW).payment.credit_nanos for cents in (1, 3, 5)]
    assert worth == [0, 2, 2]


def test_an_invoice_that_gives_back_gives_nothing_and_says_how_much_it_returns():
    given_ = credit(invoice(line(-1000)))
    assert (given_.parts, given_.payment.credit_nanos, given_.excess_nanos) == ((), 0, 2 * USD)


def test_a_year_gives_twelve_equal_months_each_until_the_next():
    end = months_after(NOW, 12)
    price = annual_price_nanos(plan()) // NANOS_PER_CENT
    parts = credit(invoice(line(price, interval=YEAR, end=end))).parts
    assert [part.amount_nanos for part in parts] == [3_800_000_000] * 12
    assert [part.due_at for part in parts] == [NOW, *(months_after(NOW, month) for month in range(1, 12))]
    assert [part.expires_at for part in parts] == [months_after(NOW, month) for month in range(1, 13)]
    assert [part.request_id for part in parts] == [f"invoice:in_1:{number}" for number in range(1, 13)]


def test_a_year_whose_price_was_rounded_to_a_cent_gives_what_twelve_months_give():
    made = plan(price=2999 * NANOS_PER_CENT)
    price = annual_price_nanos(made) // NANOS_PER_CENT
    paid = invoice(line(price, interval=YEAR, end=months_after(NOW, 12)))
    parts = credit_of("acme", paid, {PlanKey("starter", 1): made}, now=NOW).parts
    assert sum(part.amount_nanos for part in parts) == 12 * made.paid_credit_nanos


cents = st.integers(-100_000, 100_000)
lines = st.lists(
    st.builds(line, cents, st.sampled_from(["starter", "professional", "odd"]), st.sampled_from([MONTH, YEAR])),
    min_size=1,
    max_size=6,
)


@given(lines)
def test_what_an_invoice_gives_is_what_its_lines_are_worth_and_never_less_than_nothing(some):
    given_ = credit(invoice(*some))
    worth = sum((line_credit(one, PLANS[one.plan]) for one in some), Fraction(0))
    assert given_.payment.credit_nanos - given_.excess_nanos == round(worth)
    assert min(given_.payment.credit_nanos, given_.excess_nanos) == 0
    assert sum(part.amount_nanos for part in given_.parts) == given_.payment.credit_nanos
    assert all(part.amount_nanos >= 0 for part in given_.parts)


@given(st.integers(0, 6 * 365 * 24), st.integers(0, 366 * 86_400))
def test_any_part_of_a_year_is_cut_into_months_without_a_gap(hours, into):
    anchor = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
    end = months_after(anchor, 12)
    start = min(anchor + timedelta(seconds=into), end - timedelta(seconds=1))
    starts = month_starts(start, end)
    assert starts[0] == start
    assert starts == sorted(set(starts))
    assert starts[-1] < end
    assert 1 <= len(starts) <= 12
    lengths = [after - before for before, after in zip(starts, [*starts[1:], end], strict=True)]
    assert all(length >= timedelta(days=28) for length in lengths[1:])
    assert all(length <= timedelta(days=34) for length in lengths)


@given(st.integers(0, 10**9), st.integers(1, 10**7))
def test_a_top_up_gives_what_was_paid(paid, version):
    given_ = credit(PaidTopUp(f"pi_{version}", "top_up", paid * NANOS_PER_CENT, NOW))
    assert sum(part.amount_nanos for part in given_.parts) == paid * NANOS_PER_CENT
    assert all((part.expires_at, part.source) == (None, "purchase") for part in given_.parts)


def test_payments_are_taken_as_they_were_made_and_what_gives_back_last():
    first, last = invoice(line()), replace(invoice(line()), invoice_id="in_9", paid_at=NOW + timedelta(1))
    back = replace(invoice(line(-500)), invoice_id="in_0")
    assert in_order([last, back, first]) == [first, back, last]


# What is taken back


class Book:
    """The grants of one payment as they are kept, and what the ledger was told."""

    def __init__(self, given_):
        self.payment = given_.payment
        self.parts = {part.request_id: part for part in given_.parts}
        self.granted = Counter()
        self.told = []

    def grant(self, count):
        """As the job does: the next parts are granted, what is left of them."""
        waiting = sorted((p for p in self.parts.values() if p.granted_at is None), key=lambda part: part.part)
        for part in waiting[:count]:
            self.tell(part.request_id, part.left_nanos, part.request_id)
            self.parts[part.request_id] = replace(
                part, amount_nanos=part.left_nanos, taken_back_nanos=0, granted_at=NOW
            )

    def tell(self, request_id, nanos, grant_id):
        self.told.append(request_id)
        self.granted[grant_id] += nanos

    def returned(self, cents_):
        self.payment = replace(self.payment, returned={"ch_1": cents_})
        for part in adjusted(self.parts.values(), wanted_nanos(self.payment), now=NOW):
            before = self.parts.get(part.request_id)
            if before is not None and part.granted_at is not None:
                taken = part.taken_back_nanos - before.taken_back_nanos
                assert taken > 0, "what was granted is only ever taken back"
                assert part.amount_nanos == before.amount_nanos
                self.tell(f"reverse:{part.times_taken_back}:{part.request_id}", -taken, part.request_id)
            self.parts[part.request_id] = part


@given(
    st.sampled_from([MONTH, YEAR]),
    st.integers(1, 250_000),
    st.lists(st.tuples(st.floats(0, 1.2), st.integers(0, 3)), max_size=12),
)
def test_refunds_and_disputes_leave_exactly_the_share_that_was_kept(interval, paid, steps):
    end = MONTH_END if interval == MONTH else months_after(NOW, 12)
    book = Book(credit(invoice(line(paid, "odd", interval, end=end))))
    total = book.payment.credit_nanos
    for share, count in steps:
        book.returned(int(paid * share))
        book.grant(count)
        left = sum(part.left_nanos for part in book.parts.values())
        assert left == wanted_nanos(book.payment)
        assert 0 <= left <= total, "never more than was paid for, never less than nothing"
        assert all(0 <= part.taken_back_nanos <= part.amount_nanos for part in book.parts.values())
        assert all(nanos >= 0 for nanos in book.granted.values())
        assert sum(book.granted.values()) <= total
    book.returned(0)
    book.grant(99)
    assert sum(book.granted.values()) == total, "what came back to us is given again"
    assert len(book.told) == len(set(book.told)), "every request id is used once"


@pytest.mark.parametrize(
    ("refunded", "left"), [(0, 3_800_000_000), (500, 2_800_000_000), (1900, 0), (5000, 0), (1, 3_798_000_000)]
)
def test_a_refund_takes_its_share(refunded, left):
    payment = replace(credit(invoice(line())).payment, returned={"ch_1": refunded})
    assert wanted_nanos(payment) == left


def test_what_cost_nothing_is_not_taken_back():
    payment = replace(credit(invoice(line(), total=0)).payment, returned={"ch_1": 10})
    assert wanted_nanos(payment) == payment.credit_nanos


@given(st.integers(0, 10**11), st.integers(0, 12))
def test_what_an_invoice_gives_back_is_taken_of_what_is_to_come_first(excess, count):
    book = Book(credit(invoice(line(19_380, interval=YEAR, end=months_after(NOW, 12)))))
    book.grant(count)
    changed = without_returned(book.parts.values(), excess)
    taken = sum(part.taken_back_nanos for part in changed)
    assert taken == min(excess, book.payment.credit_nanos)
    waiting = sum(part.left_nanos for part in book.parts.values() if part.granted_at is None)
    assert sum(part.taken_back_nanos for part in changed if part.granted_at is not None) == max(0, taken - waiting)


def test_a_part_paid_for_too_late_lasts_to_the_end_of_the_present_cycle():
    (part,) = credit(invoice(line())).parts
    assert lasting(part, NOW, NOW) is part
    late = lasting(part, NOW, MONTH_END)
    assert late.expires_at == months_after(NOW, 2)
