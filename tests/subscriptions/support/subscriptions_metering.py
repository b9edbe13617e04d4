"""Owns a process of the background jobs with meters to report to, as a suite with Stripe runs it.

`python subscriptions_metering.py` works as the leader until it is ended; what it is told comes from the environment.
"""

import os
import sys
import threading

import stripe

from services.subscriptions.assembly import Subscriptions
from services.subscriptions.metering.stripe_meters import StripeMeterReporter
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.worker import work_as_leader

METERS_URL = "TEST_METERS_URL"


class CustomersByName:
    """Every account is a customer of Stripe's whose name follows from its own, unless its name says otherwise."""

    def customer_ids(self, account_ids):
        return {account_id: f"cus_{account_id}" for account_id in account_ids if not account_id.startswith("no-")}

    def grace_until(self, _account_id):
        return None


def stripe_client(url):
    """Stripe's own client, speaking to `url`."""
    return stripe.StripeClient("sk_test_nobody", base_addresses={"api": url}, max_network_retries=0)


def main():
    parts = Subscriptions(
        SubscriptionsSettings(),
        billing_records=CustomersByName(),
        meter_reporter=StripeMeterReporter(stripe_client(os.environ[METERS_URL])),
    )
    work_as_leader(parts.engine, parts.background_jobs, threading.Event())


if __name__ == "__main__":
    sys.exit(main())
