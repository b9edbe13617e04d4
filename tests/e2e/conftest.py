"""Owns the whole suite as its tests see it: brought up as a person would, in a folder with a space in its name."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "subscriptions" / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "kit" / "support"))
sys.path.insert(0, str(Path(__file__).parent / "support"))

from kit_collector import Collector
from subscriptions_stripe import StripeSandbox

from deploy.local import suite as local_suites
from deploy.local.launcher import Launcher
from deploy.local.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
UP_SECONDS = 180
PROVISION_SECONDS = 20
# What is looked at now and then, is looked at often: tests wait for it.
SOON = {
    "TOLLKEEPER_SUBSCRIPTIONS_ALERT_SECONDS": "1",
    "TOLLKEEPER_SUBSCRIPTIONS_METER_REPORT_SECONDS": "2",
    "TOLLKEEPER_PROXY_UPSTREAM_BREAKER_SECONDS": "1",
}

_numbers = itertools.count(1)


class Suite:
    """A running suite: its addresses and keys, and short forms of what tests do most."""

    def __init__(self, home, **settings):
        self.home = home
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")} | {
            "TOLLKEEPER_HOME": str(home),
            "TOLLKEEPER_GATEWAY_PORT": str(free_port()),
            **settings,
        }
        self._settings = settings

    def elsewhere(self, home, **settings):
        """A suite in another home, not started, set as this one but for `settings`."""
        return Suite(home, **(self._settings | settings))

    def command(self, *words):
        """Run `python -m deploy.local …`; what it printed. Fails with that where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "deploy.local", *words],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=UP_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self):
        printed = self.command("up")
        lines = (self.home / "dev.env").read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        self.env = {name: value.strip("'\"") for name, value in values.items()}
        self.url = self.env["TOLLKEEPER_URL"]
        self.admin_key = self.env["TOLLKEEPER_ADMIN_KEY"]
        self.service_token = self.env["TOLLKEEPER_SERVICE_TOKEN"]
        return printed

    def start(self, *names, but=()):
        """Start those of these processes that do not run, or of all but some.

        Sooner than `up`: it is no command of its own, and looks at neither schemas nor Stripe's prices.
        """
        local = local_suites.of(self.environment, say=lambda _line: None)
        launcher = Launcher(local.home, lambda _line: None)
        chosen = [part for part in local.parts() if part.name not in but and (not names or part.name in names)]
        with local.home.lock(), launcher.taking_back():
            launcher.bring_up([part for part in chosen if part.name != "envoy"])
            for gateway in (part for part in chosen if part.name == "envoy"):
                record = local.home.record("envoy")
                if record is None or not record.alive():
                    launcher.bring_up([gateway])
                # One that runs is not started anew, however long it takes to find again what stands behind it.
                deadline = time.monotonic() + 60
                while not gateway.ready():
                    assert time.monotonic() < deadline, "the gateway is not ready"
                    time.sleep(0.05)

    def pid(self, name):
        return json.loads((self.home / "run" / f"{name}.json").read_text())["pid"]

    def call(self, method, path, key=None, body=None, headers=None):
        """One HTTP call through the gateway: status, parsed body, headers. A `body` of bytes is sent as it is."""
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=sent, method=method, headers=dict(headers or {}))
        if sent is not None and not request.has_header("Content-type"):
            request.add_header("content-type", "application/json")
        if key:
            request.add_header("authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, raw, received = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            status, raw, received = error.code, error.read(), error.headers
        return SimpleNamespace(status=status, body=json.loads(raw) if raw else None, headers=received)

    def raw(self, path, body, key):
        """A POST of JSON: the answer's status and bytes, for what is no JSON."""
        request = urllib.request.Request(self.url + path, data=json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        request.add_header("authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path, key=None, **words):
        return self.call("GET", path, key, **words)

    def post(self, path, body, key=None, **words):
        return self.call("POST", path, key, body=body, **words)

    def customer(self, credit_nanos=0, plan="payg", **key_words):
        """A new account with a key of its own, and credit."""
        account_id = f"customer-{next(_numbers)}"
        deadline = time.monotonic() + PROVISION_SECONDS
        while True:
            made = self.post("/api/admin/accounts", {"accountId": account_id, "plan": plan}, self.admin_key)
            assert made.status == 200, made.body
            if made.body["provisioned"]:
                break
            # Right after a restart a service may still be finding its peers; the outbox delivers by itself.
            assert time.monotonic() < deadline, made.body
            time.sleep(0.2)
        if credit_nanos:
            self.credit(account_id, credit_nanos)
        key = self.post("/api/admin/keys", {"accountId": account_id, "name": "test", **key_words}, self.admin_key)
        assert key.status == 200, key.body
        return SimpleNamespace(account_id=account_id, key=key.body["key"], key_id=key.body["keyId"])

    def credit(self, account_id, nanos):
        body = {"amountNanos": str(nanos), "requestId": f"credit-{account_id}-{next(_numbers)}"}
        given = self.post(f"/api/admin/accounts/{account_id}/credits", body, self.admin_key)
        assert given.status == 200, given.body

    def available(self, key):
        return int(self.get("/api/credits/balance", key).body["availableNanos"])

    def channel(self, service):
        """gRPC to a service, with a service's token. It is closed by whoever asks for it."""
        token = grpc.access_token_call_credentials(self.service_token)
        credentials = grpc.composite_channel_credentials(grpc.local_channel_credentials(), token)
        return grpc.secure_channel(self.env[f"TOLLKEEPER_{service.upper()}_ADDR"], credentials)

    def sandbox_stripe(self):
        """The suite's sandbox Stripe, as its tests speak to it."""
        key = json.loads((self.home / "secrets.json").read_text())["sandbox_stripe_key"]
        return StripeSandbox(None, self.env["TOLLKEEPER_SANDBOX_STRIPE_URL"], key)

    def sandbox_requests(self):
        """The provider's own log of what has reached it since it started, and the totals of that."""
        with urllib.request.urlopen(
            self.env["TOLLKEEPER_SANDBOX_PROVIDER_URL"] + "/sandbox/usage", timeout=10
        ) as answer:
            return json.load(answer)

    def database(self, service):
        """The URL of one service's database, as the server's superuser."""
        url, _, _ = self.env["TOLLKEEPER_DATABASE_URL"].rpartition("/")
        return f"{url}/tollkeeper_{service}"


@contextlib.contextmanager
def running(parent, **settings):
    """A suite in a folder of its own, its services given these settings besides, as environment variables."""
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper e2e-", dir=parent))
    folder.chmod(0o711)
    suite = Suite(folder / "home", **settings)
    try:
        suite.up()
        yield suite
    finally:
        suite.command("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def collector():
    """What the session's suite tells of its traces."""
    with Collector() as served:
        yield served


@pytest.fixture(scope="session")
def suite(collector, quickest_folder):
    """A suite of the test session's own. All files without one of their own go to one worker, which starts it."""
    traces = {"TOLLKEEPER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with running(quickest_folder, **SOON, **traces) as suite:
        yield suite


@pytest.fixture(scope="module")
def own_suite(quickest_folder):
    """`own_suite(**settings)`: a suite of one module's own, set as it needs it."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(quickest_folder, **settings))


@pytest.fixture
def eventually():
    """Wait until something holds, for a bounded time."""

    def wait(condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "did not come true in time"
            time.sleep(0.1)

    return wait
