"""Owns a Stripe of meters alone: an HTTP server of the four calls that metering makes, keeping to Stripe's words.

Identifiers count once, and a second one is refused as Stripe refuses it; idempotency keys replay; a meter sums, or
gives the value with the latest timestamp. It can be down, lose its answers after counting, forget identifiers.
"""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from services.subscriptions.metering.model import METRICS, meter_event_name, meter_formula

_MAX_AGE_SECONDS, _MAX_LEAD_SECONDS = 35 * 86_400, 300


@dataclass(frozen=True)
class Counted:
    identifier: str
    event_name: str
    customer: str
    value: int
    timestamp: int


class FakeMeters:
    """`events` is what was counted, in the order it came; `requests` counts what was asked, repeats too."""

    def __init__(self):
        self.lock = threading.RLock()
        self.events = {}
        self.replies = {}
        self.requests = 0
        self.down = False
        self.breaks = 0  # answer 500 to so many events without counting them, and the same to a repeat with the key
        self.lost_answers = 0  # count an event, but answer 500, so many times
        self.keeps_idempotency_keys = True
        self.forgets_identifiers = False  # as Stripe may, a day later
        self.url = ""

    @contextmanager
    def serve(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                form = parse_qs(self.rfile.read(int(self.headers.get("content-length", 0))).decode())
                self.answer(*fake.create(form, self.headers.get("idempotency-key", "")))

            def do_GET(self):
                self.answer(*fake.read(urlsplit(self.path)))

            def answer(self, status, body):
                raw = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def create(self, form, key):
        with self.lock:
            self.requests += 1
            if self.down:
                return _error(500, "api_error", "down")
            if self.keeps_idempotency_keys and key in self.replies:
                return self.replies[key]
            event = Counted(
                form["identifier"][0],
                form["event_name"][0],
                form["payload[stripe_customer_id]"][0],
                int(form["payload[value]"][0]),
                int(form["timestamp"][0]),
            )
            breaks = self.breaks > 0
            self.breaks -= breaks
            reply = _error(500, "api_error", "broken") if breaks else self._counted(event)
            self.replies[key] = reply
            lost = reply[0] == 200 and self.lost_answers > 0
            self.lost_answers -= lost
        return _error(500, "api_error", "the answer was lost") if lost else reply

    def _counted(self, event):
        now = time.time()
        if event.event_name not in {meter_event_name(metric) for metric in METRICS}:
            return _error(400, "invalid_request_error", f"No active meter found for event name {event.event_name}")
        if not now - _MAX_AGE_SECONDS <= event.timestamp <= now + _MAX_LEAD_SECONDS:
            return _error(400, "invalid_request_error", "The timestamp must be within the past 35 days")
        if event.identifier in self.events and not self.forgets_identifiers:
            words = f"An event already exists with identifier {event.identifier}."
            return _error(400, "invalid_request_error", words)
        again = event.identifier in self.events
        self.events[f"{event.identifier}#2" if again else event.identifier] = event
        return 200, {"object": "billing.meter_event", "identifier": event.identifier, "event_name": event.event_name}

    def read(self, url):
        if self.down:
            return _error(500, "api_error", "down")
        if url.path == "/v1/billing/meters":
            meters = [
                {"id": f"mtr_{metric}", "object": "billing.meter", "event_name": meter_event_name(metric)}
                for metric in METRICS
            ]
            return 200, {"object": "list", "data": meters, "has_more": False, "url": url.path}
        metric = url.path.split("/")[4].removeprefix("mtr_")
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        start, end = int(asked["start_time"]), int(asked["end_time"])
        if start % 60 or end % 60:
            return _error(400, "invalid_request_error", "must be aligned with minute boundaries")
        value = self.total(asked["customer"], metric, start, end)
        data = [{"object": "billing.meter_event_summary", "id": "mtrsum_1", "aggregated_value": value}] if value else []
        return 200, {"object": "list", "data": data, "has_more": False, "url": url.path}

    def of(self, customer, metric):
        """What was counted of a customer, by timestamp."""
        name = meter_event_name(metric)
        with self.lock:
            found = [event for event in self.events.values() if (event.customer, event.event_name) == (customer, name)]
        return sorted(found, key=lambda event: event.timestamp)

    def total(self, customer, metric, start=0, end=2**40):
        values = [event.value for event in self.of(customer, metric) if start <= event.timestamp < end]
        return (values[-1] if values else 0) if meter_formula(metric) == "last" else sum(values)


def _error(status, kind, message):
    return status, {"error": {"type": kind, "message": message}}
