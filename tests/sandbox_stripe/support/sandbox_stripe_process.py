"""Owns the sandbox Stripe as tests see it: a process of its own, the real library before it, a receiver behind it."""

from __future__ import annotations

import http.server
import json
import re
import secrets
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import stripe

KEY = "sk_test_tests"
SECRET = "whsec_tests"
# Where most clocks of these tests begin: 1 January 2026.
NEW_YEAR = 1767225600
DAY = 86_400


@dataclass
class Receiver:
    """A webhook endpoint that keeps what it is sent, its signature verified; it fails `refuse` times first."""

    events: list[Any] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    refuse: int = 0
    attempts: int = 0

    def __post_init__(self) -> None:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = receiver.take(body, self.headers["stripe-signature"])
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/webhook/stripe"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def take(self, body: bytes, signature: str) -> int:
        self.attempts += 1
        if self.refuse:
            self.refuse -= 1
            return 500
        event = stripe.Webhook.construct_event(body, signature, SECRET)
        self.events.append(event)
        self.signatures.append(signature)
        return 200

    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass
class Sandbox:
    """A running sandbox."""

    process: subprocess.Popen[str]
    url: str
    banner: str

    def client(self, key: str = KEY, retries: int = 0) -> stripe.StripeClient:
        addresses = {"api": self.url, "meter_events": self.url}
        return stripe.StripeClient(key, base_addresses=addresses, max_network_retries=retries)

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Ask one of the sandbox's own addresses: status and JSON."""
        data = None if body is None else json.dumps(body).encode()
        return _send(urllib.request.Request(self.url + path, data, headers or {}, method=method))

    def form(self, url: str, fields: dict[str, str], accept: str = "*/*") -> tuple[int, Any]:
        """Send a form to one of the pages' addresses, as a script or (`accept` text/html) a browser does."""
        data = urllib.parse.urlencode(fields).encode()
        return _send(urllib.request.Request(url, data, {"accept": accept}, method="POST"))

    def drain(self, *, delivered: bool = False) -> None:
        """Wait until nothing is due to be delivered, or nothing is left to be delivered."""
        _, answer = self.call("POST", "/sandbox/deliveries/drain", {"seconds": 30, "delivered": delivered})
        assert answer["drained"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, if it has not ended; its exit code."""
        assert self.process.stdout is not None
        try:
            self.process.send_signal(number)
            return self.process.wait(timeout=15)
        finally:
            self.process.kill()
            self.process.stdout.close()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}))


def _send(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with _OPENER.open(request, timeout=30) as answer:
            return answer.status, _parsed(answer.read(), answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parsed(error.read(), error.headers)


def _parsed(raw: bytes, headers: Any) -> Any:
    if "location" in headers:
        return headers["location"]
    return json.loads(raw) if raw and "json" in headers.get("content-type", "") else raw


def start(*arguments: str) -> Sandbox:
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.local.sandbox.stripe", "--api-key", KEY, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    banner = process.stdout.readline()
    match = re.search(r"(http://[\d.]+:\d+)$", banner.strip())
    assert match, f"it did not start: {banner!r}"
    return Sandbox(process, match[1], banner)


@dataclass
class Shop:
    """What most tests need of one sandbox: plans to sell, customers with cards, time to move on."""

    sandbox: Sandbox
    v1: Any

    def price(self, cents: int, *, interval: str = "month", name: str = "Plan", **more: Any) -> Any:
        product = self.v1.products.create({"name": name})
        recurring = {"interval": interval}
        return self.v1.prices.create(
            {"product": product.id, "currency": "usd", "unit_amount": cents, "recurring": recurring, **more}
        )

    def meter(self) -> Any:
        name = f"tokens_{secrets.token_hex(6)}"
        formula = {"formula": "sum"}
        return self.v1.billing.meters.create(
            {"display_name": "tokens", "event_name": name, "default_aggregation": formula}
        )

    def metered_price(self, meter: Any, included: int, overage: str) -> Any:
        """Nothing up to `included` a month, then `overage` cents each."""
        product = self.v1.products.create({"name": "Tokens"})
        return self.v1.prices.create(
            {
                "product": product.id,
                "currency": "usd",
                "billing_scheme": "tiered",
                "tiers_mode": "graduated",
                "tiers": [
                    {"up_to": included, "unit_amount_decimal": "0"},
                    {"up_to": "inf", "unit_amount_decimal": overage},
                ],
                "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
            }
        )

    def clock(self, at: int = NEW_YEAR) -> Any:
        return self.v1.test_helpers.test_clocks.create({"frozen_time": at})

    def advance(self, clock: Any, to: int) -> None:
        assert self.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": to}).status == "advancing"
        found = self.v1.test_helpers.test_clocks.retrieve(clock.id)
        assert (found.status, found.frozen_time) == ("ready", to)

    def customer(self, clock: Any = None, card: str | None = "pm_card_visa", **more: Any) -> Any:
        params: dict[str, Any] = {"email": f"{secrets.token_hex(6)}@example.com", **more}
        if clock is not None:
            params["test_clock"] = clock.id
        customer = self.v1.customers.create(params)
        if card is not None:
            self.give_card(customer.id, card)
        return customer

    def give_card(self, customer: str, card: str) -> Any:
        method = self.v1.payment_methods.attach(card, {"customer": customer})
        self.v1.customers.update(customer, {"invoice_settings": {"default_payment_method": method.id}})
        return method

    def subscribe(self, customer: Any, *prices: Any, **more: Any) -> Any:
        items = [{"price": price.id} for price in prices]
        return self.v1.subscriptions.create({"customer": customer.id, "items": items, **more})

    def events(self, **wanted: Any) -> list[Any]:
        """Every event, oldest first."""
        return list(self.v1.events.list({"limit": 100, **wanted}).auto_paging_iter())[::-1]

    def events_of(self, *identifiers: str) -> list[str]:
        """The types of events about these objects, or about anything that names them, oldest first."""
        return [event.type for event in self.events() if any(i in str(event.data.object) for i in identifiers)]


Start = Callable[..., Sandbox]
