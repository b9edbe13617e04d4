"""What Stripe tells, from the webhook to ledger and proxy: the sandbox Stripe, a real Postgres, faked peers.

Each event is delivered, applied and delivered on when the test says so; `told` is in support/subscriptions_events.py.
"""

import random
import time
from argparse import Namespace
from datetime import timedelta

import pytest
from subscriptions_events import FREE, STARTER, STARTER_CREDIT, USD, body_of, event_body, send
from subscriptions_peers import eventually

from services.kit.identity import Role
from services.subscriptions.clock import utc_now
from services.subscriptions.commands.reconcile import RECONCILE, REPLAY

CENT = 10_000_000


def applied_once(told, account_id="acme"):
    """Whether the ledger took every request in once."""
    return len(told.ledger.applied) == len(set(told.ledger.applied)) and account_id in told.ledger.books


# Once


def test_paid_subscription_gives_plan_limits_and_credit(told):
    told.customer()
    assert told.standing() == FREE
    told.subscribe()
    told.settle()
    assert told.standing() == STARTER
    assert told.credit() == STARTER_CREDIT
    assert told.ledger.books["acme"]["anchor"] <= told.clock(), "cycles are counted from the paid period's start"
    assert set(told.statuses()) <= {"applied", "ignored"}


def test_credit_expires_with_the_period_that_was_paid(told):
    made = told.subscribed()
    (grant,) = [grant for grant in told.ledger.books["acme"]["grants"] if grant.source == "subscription"]
    item = told.stripe.v1.subscriptions.retrieve(made.id)["items"].data[0]
    assert grant.expires_at.seconds == item.current_period_end
    assert told.ledger.books["acme"]["anchor"].timestamp() == item.current_period_start


def test_credits_are_granted_once_on_a_webhook_retry(told):
    told.customer()
    told.subscribe()
    events = told.news()
    told.tell(events)
    told.apply()
    for event in events:
        assert not told.receive(body_of(event)), "kept already"
    told.apply()
    for event in events:
        told.parts.stripe_events.log.replay(event.id)
    told.deliver()
    assert told.credit() == STARTER_CREDIT
    assert len(told.payments()) == 1
    assert applied_once(told)


@pytest.mark.parametrize("first", ["invoice.paid", "invoice.payment_succeeded"])
@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
def test_invoice_paid_and_payment_succeeded_grant_once(told, first, together):
    told.customer()
    told.subscribe()
    pair = [event for event in told.news() if event.type in ("invoice.paid", "invoice.payment_succeeded")]
    assert len(pair) == 2
    for event in sorted(pair, key=lambda event: event.type != first):
        told.tell([event])
        if not together:
            told.apply()
    told.apply()
    assert told.credit() == STARTER_CREDIT
    assert (told.statuses(), told.standing()) == ({"applied": 2}, STARTER)


def test_credit_bought_is_granted_once_and_lasts(told):
    told.customer()
    intent = told.buy(cents=2500)
    told.settle()
    told.receive(event_body("payment_intent.succeeded", intent.to_dict()))
    told.apply()
    assert told.grants() == {f"payment:{intent.id}": 25 * USD}
    (grant,) = [grant for grant in told.ledger.books["acme"]["grants"] if grant.source == "purchase"]
    assert not grant.HasField("expires_at")
    assert told.standing() == FREE


def test_checkout_of_credit_is_granted_once_by_session_and_payment(told):
    told.customer()
    session = told.stripe.v1.checkout.sessions.create({
        "mode": "payment", "customer": told.customers["acme"], "success_url": "http://localhost/",
        "line_items": [{"price_data": {"currency": "usd", "unit_amount": 1000, "product_data": {"name": "Credit"}},
                        "quantity": 1}],
        "metadata": {"account_id": "acme", "purpose": "top_up"},
        "payment_intent_data": {"metadata": {"account_id": "acme", "purpose": "top_up", "request_id": "r"}},
    })  # fmt: skip
    told.settle()
    assert told.credit() == 0
    told.stripe.pay(session.url)
    events = told.news()
    assert {"checkout.session.completed", "payment_intent.succeeded"} <= {event.type for event in events}
    told.tell(events)
    told.apply()
    assert told.credit() == 10 * USD


# Order


@pytest.mark.parametrize("seed", range(3))
def test_events_out_of_order_leave_no_cancelled_customer_active(told, seed):
    told.customer()
    made = told.subscribe()
    told.stripe.v1.subscriptions.cancel(made.id)
    events = told.news()
    if seed == 0:
        events = events[::-1]
    else:
        random.Random(seed).shuffle(events)
    for event in events:
        told.tell([event])
        told.apply()
        assert told.standing() == FREE, "it was over before the first event was told"
    assert told.credit() == STARTER_CREDIT, "what was paid stays until it expires"


def test_late_event_of_the_activation_does_not_revive_what_was_cancelled(told):
    told.customer()
    made = told.subscribe()
    begun = told.news()
    told.tell(begun[:-1])
    told.apply()
    assert told.standing() == STARTER
    told.stripe.v1.subscriptions.cancel(made.id)
    told.settle()
    assert told.standing() == FREE
    told.tell(begun[-1:])
    told.tell([event for event in begun if event.type == "customer.subscription.updated"])
    told.apply()
    assert told.standing() == FREE


def test_refund_told_of_before_its_payment_takes_back_what_the_payment_gave(told):
    told.customer()
    told.subscribe()
    told.refund(told.charge(), 950)
    for event in told.news()[::-1]:
        told.tell([event])
        told.apply()
    assert told.credit() == STARTER_CREDIT // 2


def test_failed_event_of_another_object_holds_up_nothing(told):
    told.customer()
    told.receive(event_body("invoice.paid", {"object": "invoice", "id": "in_gone", "customer": told.customers["acme"]}))
    told.subscribe()
    told.settle()
    assert told.standing() == STARTER
    assert told.credit() == STARTER_CREDIT
    assert told.statuses()["failed"] == 1


# What gives nothing


def test_checkout_that_never_completes_gives_nothing(told):
    told.customer(card=None)
    session = told.stripe.v1.checkout.sessions.create({
        "mode": "subscription", "customer": told.customers["acme"], "success_url": "http://localhost/",
        "line_items": [{"price": told.price("starter"), "quantity": 1}],
        "subscription_data": {"metadata": {"account_id": "acme", "plan": "starter", "plan_version": "1"}},
    })  # fmt: skip
    told.stripe.declined(session.url)
    told.settle()
    assert (told.standing(), told.payments()) == (FREE, [])
    told.stripe.v1.checkout.sessions.expire(session.id)
    told.settle()
    assert (told.standing(), told.payments(), told.credit()) == (FREE, [], 0)


def test_subscription_whose_first_payment_is_not_made_gives_nothing(told):
    told.customer()
    made = told.subscribe(payment_behavior="default_incomplete")
    told.settle()
    assert (told.standing(), told.payments()) == (FREE, [])
    told.stripe.v1.invoices.pay(made.latest_invoice)
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)


def test_forged_snapshot_of_a_payment_is_not_believed(told):
    """What an event says is a snapshot: an invoice that it calls paid is looked up, and is not."""
    told.customer()
    made = told.subscribe(payment_behavior="default_incomplete")
    about = {"object": "invoice", "id": made.latest_invoice, "customer": told.customers["acme"]}
    told.receive(event_body("invoice.paid", about | {"status": "paid", "total": 1900, "amount_paid": 1900}))
    told.apply()
    assert (told.standing(), told.payments()) == (FREE, [])


def test_events_of_nobody_here_are_kept_and_not_acted_upon(told):
    stranger = told.stripe.v1.customers.create({"email": "b@example.com"})
    told.receive(event_body("invoice.paid", {"object": "invoice", "id": "in_1", "customer": stranger.id}))
    told.receive(event_body("payment_intent.succeeded", {"object": "payment_intent", "id": "pi_1", "customer": None}))
    told.receive(event_body("checkout.session.completed", {"object": "checkout.session", "id": "cs_1"}))
    told.receive(event_body("product.created", {"object": "product", "id": "prod_1"}))
    told.apply()
    assert told.statuses() == {"ignored": 4}


def test_subscription_to_something_else_beside_ours_changes_nothing(told):
    told.subscribed()
    prices = told.stripe.v1.prices
    product = told.stripe.v1.products.create({"name": "Socks"})
    socks = prices.create(
        {"product": product.id, "currency": "usd", "unit_amount": 500, "recurring": {"interval": "month"}}
    )
    told.stripe.v1.subscriptions.create({"customer": told.customers["acme"], "items": [{"price": socks.id}]})
    told.settle()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)
    assert "failed" not in told.statuses()


# What was missed


def test_reconcile_finds_events_that_were_never_delivered(told):
    told.customer()
    told.subscribe()
    missed = told.news()
    found = told.parts.stripe_events.reconciliation.events(utc_now() - timedelta(days=1))
    assert 0 < found.recovered <= found.seen
    told.apply()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)
    again = told.parts.stripe_events.reconciliation.events(utc_now() - timedelta(days=1))
    assert (again.seen, again.recovered) == (found.seen, 0)
    told.tell(missed)  # they arrive after all
    told.apply()
    assert told.credit() == STARTER_CREDIT


def test_reconcile_job_leaves_alone_what_may_still_be_delivered(told):
    told.customer()
    told.subscribe()
    told.parts.stripe_events.reconciliation()
    assert told.statuses() == {}, "no event is called missed that has just happened"
    told.clock.forward(timedelta(minutes=11))
    told.parts.stripe_events.reconciliation()
    assert told.statuses()["pending"] > 0


def test_reconcile_finds_what_no_event_tells_of(told):
    told.subscribed()
    told.refund(told.charge(), 950)
    intent = told.buy(cents=700)
    compared = told.parts.stripe_events.reconciliation.objects(utc_now() - timedelta(days=1))
    told.deliver()
    assert (compared.done, compared.failed) == (1, 0)
    assert told.credit() == STARTER_CREDIT // 2 + 7 * USD
    assert f"payment:{intent.id}" in told.grants()


def test_stripe_that_never_had_the_customers_takes_no_plan_away(told, stripe_sandbox, parts):
    """The key of another account of Stripe's, or of the other mode: it knows nobody, and says nothing of them."""
    told.subscribed()
    stranger = parts(**stripe_sandbox.settings()).stripe_events
    assert not stranger.application.refresh_quietly("acme", told.clock())
    compared = stranger.reconciliation.objects(utc_now() - timedelta(days=1))
    assert (compared.done, compared.failed) == (0, 1)
    told.deliver()
    assert (told.standing(), told.account().status) == (STARTER, "active")


def test_customer_whose_deletion_nobody_told_of_loses_the_plan(told):
    told.subscribed()
    told.stripe.v1.customers.delete(told.customers["acme"])
    assert told.parts.stripe_events.application.refresh("acme")
    told.deliver()
    assert told.standing() == FREE


def test_reconcile_command_says_what_it_did(told, settings, capsys):
    told.customer()
    told.subscribe()
    chosen = Namespace(days=3, events_only=False)
    assert RECONCILE.run(chosen, lambda: settings(**told.stripe.settings())) == 0
    said = capsys.readouterr().out
    assert "of them recovered" in said
    assert "1 customers compared, 0 could not be" in said
    told.deliver()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)


def test_replay_command_applies_an_event_again(told, settings, capsys):
    told.subscribed()
    paid = told.event("invoice.paid")
    assert REPLAY.run(Namespace(event_id=paid.id), lambda: settings(**told.stripe.settings())) == 0
    assert capsys.readouterr().out.endswith(f"{paid.id} invoice.paid: applied\n")
    told.deliver()
    assert told.credit() == STARTER_CREDIT


def test_event_waits_while_stripe_is_away_and_is_applied_then(told):
    told.customer()
    told.subscribe()
    told.tell([event for event in told.news() if event.type == "invoice.paid"])
    told.stripe.outage(60)
    told.apply()
    assert "failed" not in told.statuses()
    assert told.standing() == FREE
    told.stripe.outage(0)
    told.database.rows("UPDATE stripe_events SET next_attempt_at = now() WHERE status = 'pending'")
    told.apply()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)
    assert "pending" not in told.statuses()


def test_event_waits_while_pricing_is_away(told, pricing):
    told.customer()
    told.subscribe()
    told.tell(told.news())
    pricing.down = True
    told.parts.plans._versions.clear()
    told.apply()
    assert told.standing() == FREE
    pricing.down = False
    told.database.rows("UPDATE stripe_events SET next_attempt_at = now() WHERE status = 'pending'")
    told.apply()
    assert (told.standing(), told.credit()) == (STARTER, STARTER_CREDIT)


# Two at once, and how long it takes


def test_slow_applier_whose_lease_was_taken_over_writes_nothing(told, monkeypatch):
    """It has read an old state of the subscription; meanwhile the customer cancelled, and another one applied that."""
    told.customer()
    made = told.subscribe()
    told.tell(told.news())
    application = told.parts.stripe_events.application
    gather = application._gathering.gather

    def slowly(*arguments):
        seen = gather(*arguments)
        monkeypatch.setattr(application._gathering, "gather", gather)
        told.database.rows("UPDATE stripe_leases SET leased_until = now()")  # a minute goes by
        told.stripe.v1.subscriptions.cancel(made.id)
        told.settle()
        assert told.standing() == FREE
        return seen

    monkeypatch.setattr(application._gathering, "gather", slowly)
    told.apply()
    assert told.standing() == FREE
    assert told.credit() == STARTER_CREDIT
    assert [change for (change,) in told.database.rows("SELECT plan_id FROM plan_changes")] == []


def test_fault_of_ours_is_noted_and_holds_up_nobody_else(told, monkeypatch):
    told.customer("acme")
    told.customer("other")
    told.subscribe("acme")
    told.subscribe("other")
    told.tell(told.news())
    effects = told.parts.stripe_events.application._effects
    write = effects.write

    def faulty(connection, account_id, *arguments):
        if account_id == "acme":
            raise ZeroDivisionError
        return write(connection, account_id, *arguments)

    monkeypatch.setattr(effects, "write", faulty)
    told.apply()
    assert (told.standing("acme"), told.standing("other")) == (FREE, STARTER)
    assert told.database.rows("SELECT DISTINCT last_error FROM stripe_events WHERE status = 'failed'") == [
        ("ZeroDivisionError: ",)
    ]
    monkeypatch.undo()
    told.database.rows("UPDATE stripe_events SET next_attempt_at = now() WHERE status = 'failed'")
    told.parts.stripe_events.jobs(told.parts.settings)[1].job()
    told.apply()
    assert told.standing("acme") == STARTER


def test_plan_change_reaches_ledger_and_proxy_without_anybody_asking(told, served, connect):
    """Limits and entitlement follow the webhook by themselves.

    From the first of its 13 webhooks until the proxy had the new entitlement, six times each on two busy cores: 1.3 to
    2.6 s with jobs that look each second (the default), 0.2 to 0.6 s with ones that look every 50 ms, as here. The
    ledger had the limits 0.01 to 0.1 s before.
    """
    told.customer()
    with served(jobs=True, **told.stripe.settings()) as address:
        stripe_side = connect(address, Role.PUBLIC)
        told.subscribe()
        events = told.news()
        began = time.monotonic()
        for event in events:
            send(stripe_side, body_of(event))
        acknowledged = time.monotonic()
        eventually(lambda: told.standing() == STARTER, timeout_seconds=30)
        reached = time.monotonic()
        eventually(lambda: told.credit() == STARTER_CREDIT, timeout_seconds=30)
    print(f"acknowledged in {acknowledged - began:.2f} s, at ledger and proxy {reached - acknowledged:.2f} s later")
