"""Renewals that somebody else has a hand in, or that are interrupted: charged once at most, granted once if paid."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from subscriptions_events import PROFESSIONAL, PROFESSIONAL_CREDIT, STARTER, STARTER_CREDIT, moment

from services.subscriptions import store
from services.subscriptions.stripe import mirror_store
from services.subscriptions.stripe.effects import Effects
from services.subscriptions.stripe.gathering import Gathering
from services.subscriptions.stripe.reading import StripeReader
from services.subscriptions.stripe.renewals import Renewals

SOON = timedelta(seconds=30)
PAID_ONCE = (["paid", 1900], [1900, 1900], 2 * STARTER_CREDIT)


class KilledError(BaseException):
    """The process ends here."""


@pytest.fixture
def draft(told):
    """The renewal of a paid subscription, of which nobody was told yet."""
    told.start_clock()
    made = told.subscribed()
    told.later(until=moment(told.period_end(made)) + SOON)
    return told.stripe.v1.subscriptions.retrieve(made.id, {"expand": ["latest_invoice"]}).latest_invoice


def outcome(told, invoice):
    """Where the invoice stands and what was paid of it, all that was charged, and the credit that the ledger has."""
    found = told.stripe.v1.invoices.retrieve(invoice.id)
    charged = [charge.amount for charge in told.stripe.charges(told.customers["acme"])][::-1]
    return [found.status, found.amount_paid], charged, told.credit()


@pytest.fixture
def kill(told, monkeypatch):
    """`kill(part, step, after=…)`: a worker dies before a step, or after it is done; another one follows it."""

    def run(part, step, *, after):
        does = getattr(part, step)

        def killed(*arguments):
            if after:
                does(*arguments)
            raise KilledError

        told.tell(told.news())
        with monkeypatch.context() as patched:
            patched.setattr(part, step, killed)
            with pytest.raises(KilledError):
                told.apply()
        told.database.rows("UPDATE stripe_leases SET leased_until = now()")
        told.apply()
        told.settle()

    return run


@pytest.mark.parametrize(
    ("part", "step", "after"),
    [
        (Renewals, "_finalized", False),
        (Renewals, "_finalized", True),
        (Renewals, "_pay", False),
        (Renewals, "_pay", True),
        (Effects, "write", False),
    ],
    ids=["before it is final", "final", "before it is charged", "charged", "before it is granted"],
)
def test_worker_that_dies_is_followed_by_one_that_ends_the_renewal(  # noqa: PLR0917 (fixtures)
    told, draft, kill, part, step, after
):
    kill(part, step, after=after)
    assert outcome(told, draft) == PAID_ONCE


def test_workers_at_once_without_a_lease_charge_once(told, draft):
    parts = told.parts
    reader = StripeReader(parts.stripe)
    account = told.account()
    with parts.engine.connect() as connection:
        customer_id = mirror_store.customer_of(connection, "acme")
    seen = Gathering(reader, parts.plans, seconds=20).gather(account, customer_id, (), ())
    assert seen.subscription.renewal_id == draft.id
    renewals = Renewals(parts.stripe, reader, parts.ledger, enabled=True)
    with ThreadPoolExecutor(8) as pool:
        outcomes = [pool.submit(renewals.collect_waiting, account, seen) for _ in range(8)]
    assert {done.result().value for done in outcomes} <= {"collected", "overtaken", "later", "refused"}
    assert parts.stripe_events.application.refresh("acme")
    told.settle()
    assert outcome(told, draft) == PAID_ONCE


def paid_by_hand(told, invoice):
    told.stripe.v1.invoices.finalize_invoice(invoice.id)
    told.stripe.v1.invoices.pay(invoice.id)


def paid_elsewhere(told, invoice):
    told.stripe.v1.invoices.finalize_invoice(invoice.id)
    told.stripe.v1.invoices.pay(invoice.id, {"paid_out_of_band": True})


def voided(told, invoice):
    told.stripe.v1.invoices.finalize_invoice(invoice.id)
    told.stripe.v1.invoices.void_invoice(invoice.id)


def ended(told, invoice):
    told.stripe.v1.subscriptions.cancel(invoice.parent.subscription_details.subscription)


def deleted_customer(told, invoice):
    told.stripe.v1.customers.delete(invoice.customer)


WHEN = pytest.mark.parametrize("when", ["before it is read", "after it was read"])


@pytest.fixture
def meanwhile(told, monkeypatch):
    """`meanwhile(done, invoice, when)`: what is done by others about the moment at which the worker reads the draft."""

    def arrange(done, invoice, when):
        reads, left = StripeReader.renewal, [invoice]

        def renewal(reader, invoice_id):
            first = left.pop() if left else None
            if first is not None and when == "before it is read":
                done(told, first)
            found = reads(reader, invoice_id)
            if first is not None and when == "after it was read":
                done(told, first)
            return found

        monkeypatch.setattr(StripeReader, "renewal", renewal)

    return arrange


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (paid_by_hand, PAID_ONCE),
        (paid_elsewhere, (["paid", 1900], [1900], 2 * STARTER_CREDIT)),
        (voided, (["void", 0], [1900], STARTER_CREDIT)),
        (deleted_customer, (["draft", 0], [1900], STARTER_CREDIT)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@WHEN
def test_what_others_do_meanwhile_stands(told, draft, meanwhile, done, expected, when):  # noqa: PLR0917 (fixtures)
    meanwhile(done, draft, when)
    told.settle()
    told.settle()
    assert "failed" not in told.statuses()
    assert outcome(told, draft) == expected


@WHEN
def test_subscription_that_is_ended_meanwhile_is_charged_nothing_more(told, draft, meanwhile, when):
    meanwhile(ended, draft, when)
    told.settle()
    told.settle()
    _, charged, credit = outcome(told, draft)
    assert (charged, credit) == ([1900], STARTER_CREDIT)


@pytest.mark.parametrize(("status", "asked"), [(429, "finalize"), (500, "pay"), (409, "pay")])
def test_refusals_for_now_leave_the_rest_to_stripe(told, draft, status, asked):
    told.stripe.fault("status", f"/v1/invoices/*/{asked}", status=status, count=100)
    told.settle()
    for _ in range(3):
        told.later(seconds=61)
        told.tick()
    told.later(hours=2)
    told.settle()
    told.tick()
    assert outcome(told, draft) == PAID_ONCE


def test_renewal_of_an_account_that_the_ledger_does_not_know_yet_is_granted_when_it_does(told, ledger):
    told.start_clock()
    ledger.down = True
    told.customer()
    made = told.subscribe()
    told.tell(told.news())
    while told.parts.stripe_events.application.advance():
        pass
    told.later(until=moment(told.period_end(made)) + SOON)
    told.tell(told.news())
    while told.parts.stripe_events.application.advance():
        pass
    ledger.down = False
    with told.parts.engine.begin() as connection:
        store.lock_account(connection, "acme")
        store.tell_again(connection, "acme", ())
    told.deliver()
    charged = [charge.amount for charge in told.stripe.charges(told.customers["acme"])]
    assert (charged, told.credit(), told.standing()) == ([1900, 1900], STARTER_CREDIT, STARTER)


def test_upgrade_that_comes_before_the_renewal_is_collected_brings_the_dearer_plans_credit_once(told, draft):
    (made,) = told.stripe.v1.subscriptions.list({"customer": told.customers["acme"]}).data
    told.move(made, "professional", metadata={"plan": "professional", "plan_version": "1"})
    told.settle()
    told.later(hours=2)
    told.settle()
    told.tick()
    assert told.standing() == PROFESSIONAL
    assert sum(outcome(told, draft)[1]) == 1900 + 9900
    # All of the period is moved, but for the seconds since it began, at a cheaper plan's rate.
    assert abs(told.credit() - STARTER_CREDIT - PROFESSIONAL_CREDIT) < PROFESSIONAL_CREDIT // 10_000
