"""Owns the proof that watches see the whole catalogue and each change within a second, and starve nobody."""

import queue
import threading
import time

import grpc
import pytest
import sqlalchemy
from tollkeeper.pricing.v1 import plan_service_pb2 as plan_pb
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1.resources_pb2 import Price, Rate, Usage

from services.kit.db import parsed_url
from services.kit.errors import RemoteError
from services.pricing import store
from services.rating import InvalidPriceCard


def publish(model, request_id, count=1):
    prices = [
        Price(
            provider="openai",
            model=f"{model}{number or ''}",
            mode="chat",
            rates=[Rate(component="input", nanos_per_million=1)],
        )
        for number in range(count)
    ]
    return pb.PublishPricesRequest(prices=prices, request_id=request_id)


class Watch:
    """A running watch; what came, in order."""

    def __init__(self, pricing):
        self.call = pricing.prices.WatchCatalogue(pb.WatchCatalogueRequest())
        self._came = queue.Queue()
        self.ended = threading.Event()
        self.error = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        try:
            for change in self.call:
                self._came.put(change)
        except grpc.RpcError as error:
            self.error = error
        self.ended.set()

    def next(self, timeout_seconds=5):
        return self._came.get(timeout=timeout_seconds)

    def whole(self):
        changes = [self.next()]
        while not changes[-1].complete:
            changes.append(self.next())
        return changes

    def cancel(self):
        self.call.cancel()
        self._thread.join(5)


@pytest.fixture
def watch():
    made = []

    def watch(pricing):
        made.append(Watch(pricing))
        return made[-1]

    yield watch
    for one in made:
        one.cancel()


@pytest.fixture
def admin(pricing, client):
    return client(pricing.server, "ADMIN")


def test_watch_begins_with_the_whole_catalogue(pricing, watch):
    (change,) = watch(pricing).whole()
    assert (len(change.prices), len(change.plans), change.version) == (15, 8, 1)


def test_whole_catalogue_comes_in_messages_of_bounded_size(pricing, admin, watch):
    admin.prices.PublishPrices(publish("m", "r1", count=1200))
    changes = watch(pricing).whole()
    assert [len(change.prices) for change in changes] == [500, 500, 215]
    assert [change.complete for change in changes] == [False, False, True]
    assert [change.version for change in changes] == [0, 0, 2]


def test_watch_sees_each_change_once_within_a_second(serve, settings, client, watch):
    with serve(settings) as one, serve(settings) as other:
        watching = watch(client(other))
        watching.whole()
        for number in range(3):
            started = time.monotonic()
            client(one, "ADMIN").prices.PublishPrices(publish(f"m{number}-", f"r{number}"))
            change = watching.next()
            assert time.monotonic() - started < 1
            assert [price.model for price in change.prices] == [f"m{number}-"]
            assert (change.version, change.complete, len(change.plans)) == (number + 2, True, 0)
        with pytest.raises(queue.Empty):
            watching.next(timeout_seconds=0.6)
        watching.cancel()


def test_watch_is_told_of_prices_to_come_and_of_withdrawals(pricing, admin, watch):
    request = publish("later", "r1")
    request.effective_from.GetCurrentTime()
    request.effective_from.seconds += 3600
    admin.prices.PublishPrices(request)
    gone = Price(provider="openai", model="gpt-4o", withdrawn=True)
    admin.prices.PublishPrices(pb.PublishPricesRequest(prices=[gone], request_id="r2"))
    found = {price.model: price for price in watch(pricing).whole()[-1].prices}
    assert found["later"].effective_from.ToSeconds() == request.effective_from.ToSeconds()
    assert found["gpt-4o"].withdrawn


def test_watchers_beyond_the_limit_are_refused_and_others_still_served(serve, settings, client, watch):
    few = settings.model_copy(update={"max_concurrent": 8, "max_watchers": 100})
    with serve(few) as server:
        watches = [watch(client(server)) for _ in range(4)]
        for one in watches:
            one.whole()
        beyond = watch(client(server))
        assert beyond.ended.wait(5)
        error = RemoteError.from_rpc(beyond.error)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS")
        assert error.retry_after_seconds == 5
        assert client(server).plans.GetPlan(plan_pb.GetPlanRequest(plan_id="free"), timeout=5).plan_id == "free"
        watches[0].cancel()
        deadline = time.monotonic() + 5
        while True:  # its place is free again, soon
            again = watch(client(server))
            if not again.ended.wait(0.3):
                break
            assert time.monotonic() < deadline
        assert again.whole()[-1].complete
        for one in [*watches, again]:
            one.cancel()


def test_server_stops_soon_with_watchers_there(serve, settings, client, watch):
    with serve(settings.model_copy(update={"grace_seconds": 20})) as server:
        watching = watch(client(server))
        watching.whole()
        started = time.monotonic()
    assert time.monotonic() - started < 3
    assert watching.ended.wait(5)


def test_watch_is_for_services_only(pricing, client, refused):
    error = refused(
        lambda request: list(client(pricing.server, "ADMIN").prices.WatchCatalogue(request)), pb.WatchCatalogueRequest()
    )
    assert error.code is grpc.StatusCode.PERMISSION_DENIED


def test_cost_is_served_while_the_database_is_away(pricing, postgres_server, settings):
    """Prices are in memory: an outage of the database stops publications, not costs."""
    name = parsed_url(settings.database_url).database
    root = sqlalchemy.create_engine(parsed_url(postgres_server.url()), isolation_level="AUTOCOMMIT")
    request = pb.CalculateCostRequest(provider="openai", model="gpt-4o", usage=Usage(input_tokens=1))
    try:
        with root.connect() as connection:
            connection.execute(sqlalchemy.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
            connection.execute(
                sqlalchemy.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": name},
            )
            time.sleep(0.6)
            assert pricing.prices.CalculateCost(request).cost_nanos == 5_000
            connection.execute(sqlalchemy.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
    finally:
        root.dispose()


def test_catalogue_is_kept_current_again_after_it_could_not_be_read(pricing, settings, monkeypatch):
    """As in an upgrade by turns, where a newer release publishes what this one does not know."""
    read, met = store.read_prices, threading.Event()

    def reading(connection, **words):
        try:
            return read(connection, **words)
        except InvalidPriceCard:
            met.set()
            raise

    monkeypatch.setattr(store, "read_prices", reading)
    later = "UPDATE catalogue_state SET revision = revision + 1, latest_version = 2"
    engine = sqlalchemy.create_engine(parsed_url(settings.database_url))
    try:
        with engine.begin() as connection:
            connection.execute(
                sqlalchemy.text("INSERT INTO catalogue_versions VALUES (2, now(), now(), 'a newer release', '', 1)")
            )
            connection.execute(
                sqlalchemy.text(
                    "INSERT INTO prices SELECT provider, model, 2, now(), mode, display_name, 0, 0, false,"
                    """ '[["telepathy", "standard", 0, 1]]' FROM prices WHERE model = 'gpt-4o'"""
                )
            )
            connection.execute(sqlalchemy.text(later))
        assert met.wait(30)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("ALTER TABLE prices DISABLE TRIGGER written_once"))
            connection.execute(
                sqlalchemy.text("""UPDATE prices SET rates = '[["input", "standard", 0, 7000000]]' WHERE version = 2""")
            )
            connection.execute(sqlalchemy.text("ALTER TABLE prices ENABLE TRIGGER written_once"))
    finally:
        engine.dispose()
    request = pb.CalculateCostRequest(provider="openai", model="gpt-4o", usage=Usage(input_tokens=1_000_000))
    deadline = time.monotonic() + 30
    while pricing.prices.CalculateCost(request).cost_nanos != 7_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
