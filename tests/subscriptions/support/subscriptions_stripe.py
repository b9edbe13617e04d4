"""Owns the sandbox Stripe as the tests of subscriptions see it: a process of its own, the real library before it.

stripe_sandbox.client().v1.customers.create(…)     Stripe's own client
stripe_sandbox.settings()                          what the service is told of it
stripe_sandbox.fault("cut", "/v1/subscriptions*")  faults, outages, deliveries, test clocks, disputes
stripe_sandbox.pay(checkout_url)                   what a person does on its pages
"""

import asyncio
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime

import stripe
from aiohttp import web

from deploy.local.sandbox.stripe.server import SandboxStripe
from deploy.local.sandbox.stripe.store import Store
from deploy.local.sandbox.stripe.world import Settings

KEY = "sk_test_subscriptions"
SECRET = "whsec_subscriptions"
VISA, DECLINED, FAILS_LATER = "4242424242424242", "4000000000000002", "4000000000000341"
# Cards as the API takes them: one that pays, one that is attached and declined when it is charged.
PAYS, FAILS = "pm_card_visa", "pm_card_chargeCustomerFail"
DAY = 86_400


class StripeSandbox:
    """A running sandbox. It ends with `stop`, or with the process that started it."""

    def __init__(self, process, url, key):
        self.process = process
        self.url = url
        self.key = key

    # The service's side

    def client(self, *, retries=0, key=None):
        """Stripe's own client, speaking to the sandbox."""
        addresses = {"api": self.url, "meter_events": self.url}
        return stripe.StripeClient(key or self.key, base_addresses=addresses, max_network_retries=retries)

    @property
    def v1(self):
        return self.client().v1

    def settings(self, **changes):
        """Settings of subscriptions for this sandbox: `settings(**stripe_sandbox.settings())`."""
        told = {
            "stripe_api_key": self.key,
            "stripe_api_base": self.url,
            "stripe_webhook_secrets": SECRET,
            "stripe_timeout_seconds": 5,
        }
        return told | changes

    def environment(self):
        """The same for a process."""
        return {
            "TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_KEY": self.key,
            "TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_BASE": self.url,
            "TOLLKEEPER_SUBSCRIPTIONS_STRIPE_WEBHOOK_SECRETS": SECRET,
        }

    # Faults

    def fault(self, fault, path, *, method="POST", count=1, **more):
        """Lay a fault in wait: `status` (with `status=`), `cut` (takes effect), `cut-before`, `hang`, `slow`."""
        return self.call("POST", "/sandbox/faults", fault=fault, path=path, method=method, count=count, **more)

    def clear_faults(self):
        return self.call("DELETE", "/sandbox/faults")

    def outage(self, seconds):
        """Every connection of the API breaks for so long; 0 ends it."""
        return self.call("POST", "/sandbox/outage", seconds=seconds)

    # Events

    def events(self, **wanted):
        """Every event, oldest first."""
        return list(self.v1.events.list({"limit": 100, **wanted}).auto_paging_iter())[::-1]

    def deliveries(self, **wanted):
        """Deliveries, oldest first; by `state`, `type`, `event`, `limit`."""
        return self.call("GET", "/sandbox/deliveries?" + urllib.parse.urlencode(wanted))

    def hold(self, *types):
        """Hold back events of these types (default: all) from now on."""
        return self.call("POST", "/sandbox/deliveries/hold", types=list(types) or ["*"])

    def release(self, *, order="given", seed=0, copies=1):
        """Let what was held go: `given`, `reversed`, `shuffled`; each so many times."""
        return self.call("POST", "/sandbox/deliveries/release", order=order, seed=seed, copies=copies)

    def retry(self):
        """Try all that is pending or has failed now."""
        return self.call("POST", "/sandbox/deliveries/retry")

    def resend(self, event_id):
        return self.call("POST", f"/sandbox/events/{event_id}/resend")

    def drain(self, *, seconds=30, delivered=True):
        """Wait until nothing is left to be delivered (`delivered=False`: nothing is due)."""
        answer = self.call("POST", "/sandbox/deliveries/drain", seconds=seconds, delivered=delivered)
        assert answer["drained"], "not all was delivered in time"

    # Money and time

    def customer(self, account_id, *, card=PAYS, clock=None, **more):
        """A customer as the service makes them, with a card, by a test clock if one is given."""
        params = {"name": account_id, "metadata": {"managed_by": "tollkeeper", "account_id": account_id}, **more}
        if clock is not None:
            params["test_clock"] = clock.id
        made = self.v1.customers.create(params)
        if card is not None:
            self.give_card(made.id, card)
        return made

    def give_card(self, customer_id, card):
        method = self.v1.payment_methods.attach(card, {"customer": customer_id})
        self.v1.customers.update(customer_id, {"invoice_settings": {"default_payment_method": method.id}})
        return method

    def charges(self, customer_id):
        """The charges that were paid, newest first."""
        listed = self.v1.charges.list({"customer": customer_id, "limit": 100})
        return [charge for charge in listed.data if charge.paid]

    def dispute(self, charge_id, **more):
        return self.call("POST", "/sandbox/disputes", charge=charge_id, **more)

    def close_dispute(self, dispute_id, status):
        """`won` or `lost`."""
        return self.call("POST", f"/sandbox/disputes/{dispute_id}/close", status=status)

    def clock(self, at):
        """A test clock that begins at a moment (seconds, or a datetime)."""
        return self.v1.test_helpers.test_clocks.create({"frozen_time": _seconds(at)})

    def advance(self, clock, to):
        """Move a test clock on; all has happened when this returns."""
        self.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": _seconds(to)})
        assert self.v1.test_helpers.test_clocks.retrieve(clock.id).status == "ready"

    # Pages

    def pay(self, checkout_url, card=VISA):
        """Complete a checkout; the session as it is then. `declined` gives the refusal instead."""
        status, answer = self.form(f"{checkout_url}/complete", card=card, email="a@example.com", name="A")
        assert status == 200, answer
        return answer["object"]

    def declined(self, checkout_url):
        status, answer = self.form(f"{checkout_url}/complete", card=DECLINED, email="a@example.com", name="A")
        assert status == 402, answer
        return answer

    def portal(self, portal_url, action, **fields):
        """`cancel`, `resume`, `card`, `switch` at the customer's own pages."""
        status, answer = self.form(f"{portal_url}/{action}", **fields)
        assert status in (200, 303), answer
        return answer

    def get(self, url):
        """What a browser gets: status, body."""
        return _send(urllib.request.Request(url))

    def form(self, url, **fields):
        data = urllib.parse.urlencode(fields).encode()
        return _send(urllib.request.Request(url, data, method="POST"))

    # The process

    def call(self, method, path, /, **body):
        """Ask one of the sandbox's own addresses."""
        data = json.dumps(body).encode() if method == "POST" else None
        status, answer = _send(urllib.request.Request(self.url + path, data, method=method))
        assert 200 <= status < 300, answer
        return answer

    def stop(self, number=15):
        """End it (9: kill it); its exit code."""
        try:
            self.process.send_signal(number)
            return self.process.wait(timeout=15)
        finally:
            self.process.kill()
            self.process.stdout.close()


def start_stripe():
    """Start a sandbox on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.local.sandbox.stripe", "--api-key", KEY],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    banner = process.stdout.readline()
    found = re.search(r"(http://[\d.]+:\d+)$", banner.strip())
    assert found, f"the sandbox did not start: {banner!r}"
    return StripeSandbox(process, found[1], KEY)


@contextmanager
def stripe_in_this_process():
    """A sandbox that nothing is in, for tests that each need one: a thread begins sooner than a process."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    loop, began, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve():
        store = Store()
        sandbox = SandboxStripe(store, Settings(base_url=url), frozenset({KEY}))
        runner = web.AppRunner(sandbox.application(), access_log=None, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            began.set()
            await stop.wait()
        finally:
            sandbox.stop()
            await runner.cleanup()
            store.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert began.wait(20), "the sandbox did not start"
        yield StripeSandbox(None, url, KEY)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def fresh(account_id):
    """An account id that no other test uses: for tests that share a sandbox."""
    return f"{account_id}-{secrets.token_hex(4)}"


def _seconds(moment):
    return int(moment.astimezone(UTC).timestamp()) if isinstance(moment, datetime) else int(moment)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


_OPENER = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}))


def _send(request):
    try:
        with _OPENER.open(request, timeout=60) as answer:
            return answer.status, _parsed(answer.read(), answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parsed(error.read(), error.headers)


def _parsed(raw, headers):
    if "location" in headers:
        return headers["location"]
    return json.loads(raw) if raw and "json" in headers.get("content-type", "") else raw
