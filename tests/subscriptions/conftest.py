"""Owns what the tests of subscriptions share: its database, the fakes of its peers, a served instance, its clients."""

import json
import sys
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import stripe
from sqlalchemy import create_engine, text
from tollkeeper.subscriptions.v1 import billing_service_pb2_grpc, credits_service_pb2_grpc, operator_service_pb2_grpc

from services.kit import migrations
from services.kit.db import parsed_url
from services.kit.errors import RemoteError
from services.kit.identity import Identity, Role, TokenSigner, make_keypair
from services.subscriptions.__main__ import MIGRATIONS
from services.subscriptions.assembly import Subscriptions
from services.subscriptions.metering import tables as _metering_tables  # noqa: F401 (the schema has them too)
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.stripe import tables as _stripe_tables  # noqa: F401 (the same)

sys.path.insert(0, str(Path(__file__).parent / "support"))

from subscriptions_alerts import make_sender
from subscriptions_events import Told, publish_professional
from subscriptions_peers import USD, FakeLedger, FakePricing, FakeProxy
from subscriptions_receivers import Receiver
from subscriptions_shop import Shop, publish_plans
from subscriptions_stripe import start_stripe, stripe_in_this_process


@pytest.fixture(autouse=True)
def _stripe_asked_again_at_once(monkeypatch):
    """The library's pauses between its attempts, short: that it asks again, and how often, is what tests look at."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.02)


@pytest.fixture(scope="session")
def migrated_url(make_database):
    """A migrated database to copy from."""
    url = make_database("subscriptions")
    migrations.upgrade(url, MIGRATIONS)
    return url


@pytest.fixture
def subscriptions_url(database_url, migrated_url):
    return database_url("subscriptions", template=migrated_url)


@pytest.fixture
def database(subscriptions_url):
    """A connection pool of the test's own to the service's database; `database.rows(sql)` reads."""
    engine = create_engine(parsed_url(subscriptions_url))

    def rows(sql, **arguments):
        with engine.begin() as connection:
            result = connection.execute(text(sql), arguments)
            return [tuple(row) for row in result] if result.returns_rows else []

    yield SimpleNamespace(engine=engine, rows=rows, url=subscriptions_url)
    engine.dispose()


@pytest.fixture
def ledger():
    with FakeLedger().serve() as peer:
        yield peer


@pytest.fixture
def pricing():
    fake = FakePricing()
    fake.publish(
        "free", display_name="Free", promotional_grant_nanos=5 * USD, credit_nanos=5 * USD, tokens_per_cycle=50_000,
        requests_per_cycle=100, max_tokens_per_request=1000, requests_per_minute=10, providers=["openai"],
        models=["gpt-3.5-turbo"], overage_nanos_per_million_tokens=USD,
    )  # fmt: skip
    fake.publish(
        "starter", display_name="Starter", price_nanos=19 * USD, annual_discount_basis_points=1500,
        credit_nanos=3_800_000_000, tokens_per_cycle=500_000, requests_per_cycle=1000, requests_per_minute=60,
        providers=["openai", "anthropic"], models=["gpt-3.5-turbo", "claude-3-haiku"],
    )  # fmt: skip
    fake.publish(
        "payg", display_name="Pay as you go", kind="prepaid", requests_per_minute=600, max_tokens_per_request=32_000,
        providers=["*"], models=["*"], multiplier_millionths=1_500_000,
    )  # fmt: skip
    fake.publish("legacy", display_name="Legacy", retired=True, requests_per_cycle=7)
    with fake.serve() as peer:
        yield peer


@pytest.fixture
def proxy():
    with FakeProxy().serve() as peer:
        yield peer


@pytest.fixture
def stripe_sandbox():
    """A sandbox Stripe of the test's own, on a free port, empty."""
    with stripe_in_this_process() as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def session_stripe():
    running = start_stripe()
    yield running
    running.stop()


@pytest.fixture
def shared_stripe(session_stripe):
    """The session's sandbox Stripe, without faults: for tests whose accounts are their own (`fresh(name)`)."""
    yield session_stripe
    session_stripe.outage(0)
    session_stripe.clear_faults()


@pytest.fixture(scope="session")
def signing():
    pem, jwks = make_keypair()
    return SimpleNamespace(signer=TokenSigner(pem), jwks=jwks)


@pytest.fixture
def bearer(signing):
    """`bearer(Role.ADMIN)`: the metadata of a caller."""

    def metadata(role, account_id=""):
        identity = Identity(role, subject="test", account_id=account_id)
        return (("authorization", f"Bearer {signing.signer.sign(identity, 3600)}"),)

    return metadata


@pytest.fixture
def jwks_file(signing, tmp_path):
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(signing.jwks))
    return file


@pytest.fixture
def peers(ledger, pricing, proxy):
    return SimpleNamespace(ledger=ledger, pricing=pricing, proxy=proxy)


@pytest.fixture
def settings(subscriptions_url, peers, jwks_file, bearer):
    def make(**changes):
        values = {
            "listen": "127.0.0.1:0",
            "database_url": subscriptions_url,
            "identity_jwks_file": jwks_file,
            "service_token": bearer(Role.SERVICE)[0][1].removeprefix("Bearer "),
            "ledger_addr": peers.ledger.address,
            "pricing_addr": peers.pricing.address,
            "proxy_addr": peers.proxy.address,
            "plan_cache_seconds": 0,
            "poll_seconds": 0.05,
            "max_concurrent": 32,
            "inline_delivery_seconds": 5,
        }
        return SubscriptionsSettings(**(values | changes))

    return make


class Clock:
    """The service's clock, which a test may move; it starts at the present moment."""

    def __init__(self):
        self.offset = timedelta()

    def __call__(self):
        return datetime.now(UTC) + self.offset

    def forward(self, delta):
        self.offset += delta


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def parts(settings, clock):
    """`parts()`: the parts of one process, without a server."""
    with ExitStack() as stack:

        def make(**changes):
            made = Subscriptions(settings(**changes), clock=clock)
            stack.callback(made.close)
            return made

        yield make


class Caller:
    """Stubs of all contracts; `caller.refused(stub.Method, request)` gives the refusal a call ends with."""

    def __init__(self, address, metadata):
        self.channel = grpc.insecure_channel(address)
        self.metadata = metadata
        self.customers = operator_service_pb2_grpc.CustomerServiceStub(self.channel)
        self.credits = credits_service_pb2_grpc.CreditsServiceStub(self.channel)
        self.billing = billing_service_pb2_grpc.BillingServiceStub(self.channel)
        self.metering = billing_service_pb2_grpc.MeteringServiceStub(self.channel)
        self.webhooks = operator_service_pb2_grpc.WebhookServiceStub(self.channel)
        self.alerts = operator_service_pb2_grpc.AlertServiceStub(self.channel)
        self.reports = operator_service_pb2_grpc.ReportServiceStub(self.channel)

    def __call__(self, method, request):
        return method(request, metadata=self.metadata, timeout=20)

    def trailing(self, method, request):
        _, call = method.with_call(request, metadata=self.metadata, timeout=20)
        return dict(call.trailing_metadata())

    def refused(self, method, request):
        with pytest.raises(grpc.RpcError) as caught:
            self(method, request)
        return RemoteError.from_rpc(caught.value)


@pytest.fixture
def connect(bearer):
    """`connect(address, Role.ADMIN)`: a caller."""
    callers = []

    def make(address, role, account_id=""):
        callers.append(Caller(address, bearer(role, account_id) if role is not Role.PUBLIC else ()))
        return callers[-1]

    yield make
    for caller in callers:
        caller.channel.close()


@pytest.fixture
def served(settings, clock):
    """`with served(jobs=True) as address`: a served instance, with its background jobs or without."""

    @contextmanager
    def serving(*, jobs=False, **changes):
        made = Subscriptions(settings(**changes), clock=clock)
        server = made.server()
        if jobs:
            running = made.background_jobs()
            server.on_start(running.start)
            server.on_stop(running.stop)
        with server:
            yield server.address

    return serving


@pytest.fixture
def operator(served, connect):
    """An operator calling an instance that delivers inline only."""
    with served() as address:
        caller = connect(address, Role.ADMIN)
        caller.address = address
        yield caller


@pytest.fixture
def receiver():
    """An endpoint of a customer's, which takes alerts."""
    with Receiver().serve() as endpoint:
        yield endpoint


@pytest.fixture
def sender(database, settings):
    """`sender(**changes)`: what sends alerts, its settings changed."""
    return partial(make_sender, database, settings)


@pytest.fixture(scope="module")
def module_stripe():
    running = start_stripe()
    yield running
    running.stop()


@pytest.fixture
def told(module_stripe, parts, pricing, clock, ledger, proxy, database):  # noqa: PLR0917 (fixtures)
    """A service with a Stripe whose events reach it when the test says so."""
    publish_professional(pricing)
    module_stripe.outage(0)
    module_stripe.clear_faults()
    return Told(module_stripe, parts(**module_stripe.settings()), clock, ledger=ledger, proxy=proxy, database=database)


@pytest.fixture
def shop(shared_stripe, served, parts, pricing, connect, database, clock):  # noqa: PLR0917 (fixtures)
    """A served instance that sells the plans of `publish_plans`, with the session's Stripe."""
    publish_plans(pricing)
    told = shared_stripe.settings()
    with served(**told) as address:
        yield Shop.stocked(address, connect, shared_stripe, database, clock, parts(**told))
