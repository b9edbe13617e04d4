"""Owns the margin report: a month's revenue, provider cost, Stripe's fees and profit by plan; exact integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.kit.call import remaining_seconds
from services.kit.refusals import DeadlineExceeded
from services.pricing.economics import share_basis_points, stripe_fee_nanos
from services.pricing.errors import LedgerNotConfigured, SubscriptionsNotConfigured
from services.pricing.model import MAX_INT32, METERED, SUBSCRIPTION, Plan
from services.pricing.plan_service import PlanService
from services.rating import half_even

_CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month in UTC, from `start` to before `end`."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Customer:
    """Who is on which plan and version now, since when, and when the present cycle began."""

    account_id: str
    plan_id: str
    plan_version: int
    status: str
    created_at: datetime
    cycle_start: datetime


@dataclass(frozen=True, slots=True)
class Credit:
    """A credit that the ledger booked: what was given, and what of that was refunded or reversed since, in nanos."""

    amount_nanos: int
    undone_nanos: int


@dataclass(frozen=True, slots=True)
class AccountMonth:
    """What the ledger has of an account's month: paid cycles' grants, purchases, and what its calls cost."""

    grants: tuple[Credit, ...]
    purchases: tuple[Credit, ...]
    api_cost_nanos: int


_NOTHING = AccountMonth((), (), 0)


class Customers(Protocol):
    """Subscriptions, as far as the report reads it."""

    def pages(self) -> Iterator[list[Customer]]:
        """Every customer, page by page, by account id."""
        ...


class Books(Protocol):
    """The ledger, as far as the report reads it."""

    def months_of(self, account_ids: Sequence[str], month: Month) -> Mapping[str, AccountMonth]:
        """The months of these accounts, of those that have anything in them."""
        ...


@dataclass(frozen=True, slots=True)
class Payment:
    """One payment of a customer: what was paid, and what of it was kept, in nanos."""

    paid_nanos: int
    kept_nanos: int


@dataclass(slots=True)
class MarginLine:
    """One plan's month, or all plans' (`plan_id` ""), in nanos."""

    plan_id: str
    customers: int = 0
    revenue_nanos: int = 0
    api_cost_nanos: int = 0
    stripe_fee_nanos: int = 0

    @property
    def profit_nanos(self) -> int:
        """Revenue less cost and fees."""
        return self.revenue_nanos - self.api_cost_nanos - self.stripe_fee_nanos

    @property
    def margin_basis_points(self) -> int:
        """Profit ÷ revenue, within 32 bits; 0 of no revenue."""
        share = share_basis_points(self.profit_nanos, self.revenue_nanos)
        return max(-MAX_INT32 - 1, min(MAX_INT32, share))

    def add(self, payments: Iterable[Payment], api_cost_nanos: int) -> None:
        """Count one customer's month."""
        self.customers += 1
        self.api_cost_nanos += api_cost_nanos
        for payment in payments:
            self.revenue_nanos += payment.kept_nanos
            self.stripe_fee_nanos += stripe_fee_nanos(payment.paid_nanos)

    def add_line(self, other: MarginLine) -> None:
        """Count a plan's month into a total."""
        self.customers += other.customers
        self.revenue_nanos += other.revenue_nanos
        self.api_cost_nanos += other.api_cost_nanos
        self.stripe_fee_nanos += other.stripe_fee_nanos


def payments(plan: Plan, customer: Customer, booked: AccountMonth, month: Month) -> Iterator[Payment]:
    """What a customer paid in a month, as the contract defines revenue."""
    price = plan.price_nanos
    if plan.kind == SUBSCRIPTION and price:
        for grant in booked.grants:
            left = max(0, grant.amount_nanos - grant.undone_nanos)
            yield Payment(price, half_even(price * left, grant.amount_nanos))
    if plan.kind == METERED and price and _began_a_cycle(customer, month):
        yield Payment(price, price)
    for purchase in booked.purchases:
        yield Payment(purchase.amount_nanos, max(0, purchase.amount_nanos - purchase.undone_nanos))


def _began_a_cycle(customer: Customer, month: Month) -> bool:
    """Whether one of a customer's cycles began in a month: they last a month each, so every month has just one.

    The first begins when the account is made; those to come begin after the present one.
    """
    return customer.status != _CLOSED and customer.created_at < month.end and customer.cycle_start >= month.start


class MarginReports:
    """Makes margin reports from subscriptions, the ledger and the plans."""

    def __init__(self, plans: PlanService, customers: Customers | None, books: Books | None) -> None:
        """`customers`, `books`: None where subscriptions or the ledger are not configured."""
        self._plans = plans
        self._customers = customers
        self._books = books

    def of_month(self, month: Month) -> tuple[list[MarginLine], MarginLine]:
        """Each plan's month, by plan id, and the total.

        Raises LedgerNotConfigured, SubscriptionsNotConfigured, PlanNotFound, DeadlineExceeded.
        """
        if self._books is None:
            raise LedgerNotConfigured("no ledger is configured, so there is no month to report on")
        if self._customers is None:
            raise SubscriptionsNotConfigured(
                "no subscriptions service is configured, so nobody is known to be on a plan"
            )
        lines: dict[str, MarginLine] = {}
        for page in self._customers.pages():
            booked = self._books.months_of([customer.account_id for customer in page], month)
            for customer in page:
                plan = self._plans.plan(customer.plan_id, customer.plan_version)
                line = lines.setdefault(plan.plan_id, MarginLine(plan.plan_id))
                found = booked.get(customer.account_id, _NOTHING)
                line.add(payments(plan, customer, found, month), found.api_cost_nanos)
            _check_deadline()
        total = MarginLine("")
        for line in lines.values():
            total.add_line(line)
        return [lines[plan_id] for plan_id in sorted(lines)], total


def _check_deadline() -> None:
    if remaining_seconds() == 0:
        raise DeadlineExceeded("there are more customers than could be reported on within the deadline")
