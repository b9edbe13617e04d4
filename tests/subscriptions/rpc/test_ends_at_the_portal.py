"""Subscriptions that a customer ends at Stripe's own pages: told as ending, taken back, moved, and never paid twice."""

import pytest
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb


@pytest.fixture
def ending(shop):
    """A subscriber who has ended the subscription at the portal, with the period."""
    shop.start_clock()
    acme = shop.customer()
    acme.subscribe()
    url = acme.ask(acme.billing.CreatePortalSession, pb.CreatePortalSessionRequest()).portal_url
    shop.sandbox.portal(url, "cancel", subscription=acme.subscription.id)
    assert (acme.subscription.cancel_at_period_end, acme.subscription.cancel_at) == (False, period_end(acme))
    return acme


def period_end(acme):
    return acme.subscription["items"].data[0].current_period_end


def test_end_that_was_set_at_the_portal_is_taken_back(shop, ending):
    assert not ending.update(resume=True).cancel_at_period_end
    shop.later(days=32)
    assert (ending.subscription.status, ending.charged()) == ("active", [1900, 1900])


def test_end_that_was_set_at_the_portal_is_told_and_stays(shop, ending):
    assert ending.cancel().cancel_at_period_end
    assert ending.update(plan="starter").cancel_at_period_end
    shop.later(days=32)
    assert (ending.subscription.status, ending.charged()) == ("canceled", [1900])


def test_year_that_is_paid_while_the_month_was_to_end_lasts_a_year(shop, ending):
    assert ending.update(interval="year").cancel_at_period_end
    year_ends = period_end(ending)
    shop.later(days=32)
    assert (ending.subscription.status, period_end(ending)) == ("active", year_ends)
    assert ending.subscription.cancel_at == year_ends
    assert ending.update(resume=True).cancel_at_period_end is False


def test_upgrade_with_the_end_taken_back_goes_on(shop, ending):
    assert not ending.update(plan="professional", resume=True).cancel_at_period_end
    shop.later(days=32)
    assert (ending.subscription.status, ending.charged()[-1]) == ("active", 9900)


def test_longer_contract_of_an_operators_is_no_end_of_the_period(shop, ending):
    ending.update(resume=True)
    later = period_end(ending) + 40 * 86_400
    shop.sandbox.v1.subscriptions.update(ending.subscription.id, {"cancel_at": later, "proration_behavior": "none"})
    assert not ending.update(resume=True).cancel_at_period_end
    assert ending.subscription.cancel_at == later
