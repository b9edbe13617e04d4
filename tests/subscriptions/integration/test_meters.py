"""What metering needs of Stripe's meters, through the official client: the fake and the sandbox are held to the same.

With TOLLKEEPER_TEST_STRIPE_URL and …_KEY the same tests speak to the Stripe at that address, a test account's.
"""

import os
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import stripe
from subscriptions_metering import stripe_client
from subscriptions_meters import FakeMeters
from subscriptions_peers import eventually

from services.subscriptions.metering.model import METRICS, MeterEvent, floor_minute, meter_event_name, meter_formula
from services.subscriptions.metering.reporting import ReportFailedError
from services.subscriptions.metering.stripe_meters import StripeMeterReporter

STRIPE_URL = os.environ.get("TOLLKEEPER_TEST_STRIPE_URL", "")
KEY = "sk_test_meters"
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def sandbox():
    """The address of a sandbox Stripe of its own."""
    command = [sys.executable, "-m", "deploy.local.sandbox.stripe", "--listen", "127.0.0.1:0", "--api-key", KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield re.search(r"http://\S+", process.stdout.readline())[0]
        finally:
            process.terminate()


def _with_meters(key, url):
    """A client of a Stripe that has the meters, and a customer there."""
    client = stripe.StripeClient(key, base_addresses={"api": url, "meter_events": url})
    known = {meter.event_name for meter in client.v1.billing.meters.list().auto_paging_iter()}
    for metric in METRICS:
        if meter_event_name(metric) not in known:
            client.v1.billing.meters.create(
                {
                    "display_name": metric,
                    "event_name": meter_event_name(metric),
                    "default_aggregation": {"formula": meter_formula(metric)},
                    "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
                    "value_settings": {"event_payload_key": "value"},
                }
            )
    return StripeMeterReporter(client), client.v1.customers.create({"name": "metered"}).id


@pytest.fixture(params=["fake", "sandbox", *(["stripe"] if STRIPE_URL else [])])
def meters(request):
    """A reporter, and a customer of a Stripe that has the meters."""
    if request.param == "fake":
        with FakeMeters().serve() as fake:
            yield StripeMeterReporter(stripe_client(fake.url)), f"cus_{uuid.uuid4().hex[:12]}"
    elif request.param == "sandbox":
        yield _with_meters(KEY, request.getfixturevalue("sandbox"))
    else:
        yield _with_meters(os.environ["TOLLKEEPER_TEST_STRIPE_KEY"], STRIPE_URL)


@pytest.fixture
def reporter(meters):
    return meters[0]


@pytest.fixture
def told(meters):
    reporter, customer = meters
    account = f"t{uuid.uuid4().hex[:12]}"

    def make(metric, value, stamp, sequence=1):
        event = MeterEvent(account, metric, floor_minute(stamp), sequence, value, stamp, customer)
        reporter.report(event)
        return event

    return make


START = floor_minute(datetime.now(UTC) - timedelta(hours=3))


def counted(reporter, event, minutes=60):
    return reporter.counted(event.customer_id, event.metric, START, START + minutes * MINUTE)


def test_sum_adds_up_what_it_is_told(reporter, told):
    told("api_calls", 3, START)
    last = told("api_calls", 4, START + MINUTE)
    eventually(lambda: counted(reporter, last) == 7, 60)
    assert counted(reporter, last, minutes=1) == 3
    assert reporter.counted(last.customer_id, "llm_tokens", START, START + MINUTE) == 0


def test_event_told_twice_counts_once(reporter, told):
    event = told("api_calls", 3, START)
    reporter.report(event)
    eventually(lambda: counted(reporter, event) == 3, 60)


def test_last_is_the_value_of_the_latest_moment_whenever_it_is_told(reporter, told):
    told("user_seats", 9, START + 2 * MINUTE, sequence=1)
    event = told("user_seats", 5, START + MINUTE, sequence=2)
    eventually(lambda: counted(reporter, event) == 9, 60)


def test_moment_too_long_ago_is_refused(told):
    with pytest.raises(ReportFailedError) as caught:
        told("api_calls", 1, datetime.now(UTC) - timedelta(days=36))
    assert caught.value.refused


def test_stripe_that_is_not_there_is_a_failure_and_no_refusal():
    reporter = StripeMeterReporter(stripe_client("http://127.0.0.1:1"))
    with pytest.raises(ReportFailedError) as caught:
        reporter.report(MeterEvent("a", "api_calls", START, 1, 1, START, "cus_1"))
    assert not caught.value.refused
