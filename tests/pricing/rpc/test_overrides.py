"""Owns the proof that an account's own prices hold from and until their moments, are audited, and never overwritten."""

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import sqlalchemy
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1.resources_pb2 import Price, PriceOverride, Rate, Usage

from services.kit.db import sync_engine
from services.pricing import override_service
from services.proxy.catalogue import Catalogue

USD = 1_000_000_000


def stamp(moment):
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def in_seconds(seconds):
    return stamp(datetime.now(UTC) + timedelta(seconds=seconds))


def setting(request_id="o1", account="acme", model="gpt-4o", reason="", **price):
    price = price or {"multiplier_millionths": 500_000}
    override = PriceOverride(account_id=account, provider="openai", model=model, **price)
    return pb.SetPriceOverrideRequest(price_override=override, request_id=request_id, reason=reason)


def ending(request_id="e1", account="acme", model="gpt-4o", reason=""):
    return pb.DeletePriceOverrideRequest(
        account_id=account, provider="openai", model=model, request_id=request_id, reason=reason
    )


def publishing(usd, request_id="p1", **fields):
    price = Price(
        provider="openai", model="gpt-4o", mode="chat", rates=[Rate(component="input", nanos_per_million=usd * USD)]
    )
    return pb.PublishPricesRequest(prices=[price], request_id=request_id, **fields)


def cost_of(pricing, account="acme", model="gpt-4o", **fields):
    request = pb.CalculateCostRequest(
        account_id=account, provider="openai", model=model, usage=Usage(input_tokens=1_000_000), **fields
    )
    cost = pricing.prices.CalculateCost(request)
    return cost.cost_nanos, cost.price_version


@pytest.fixture
def admin(pricing, client):
    return client(pricing.server, "ADMIN")


def listed(admin, **fields):
    return list(admin.prices.ListPriceOverrides(pb.ListPriceOverridesRequest(**fields)).price_overrides)


def test_account_pays_its_own_price_and_others_the_catalogues(pricing, admin):
    made = admin.prices.SetPriceOverride(setting(reason="a large customer"))
    assert (made.version, made.HasField("effective_until")) == (2, False)
    assert cost_of(pricing) == (5 * USD // 2, 2)
    assert cost_of(pricing, "umbrella") == (5 * USD, 1)
    assert cost_of(pricing, "") == (5 * USD, 1)
    (version, _) = admin.prices.ListCatalogueVersions(pb.ListCatalogueVersionsRequest()).versions
    assert (version.version, version.author, version.reason) == (2, "the-admin", "a large customer")
    assert (version.account_id, version.prices_changed) == ("acme", 0)


def test_every_way_of_asking_honours_the_override(pricing, admin, client):
    admin.prices.SetPriceOverride(setting(multiplier_millionths=2_000_000))
    call = {"account_id": "acme", "provider": "openai", "model": "gpt-4o"}
    estimate = pb.EstimateCostRequest(**call, max_input_tokens=1_000_000)
    assert pricing.prices.EstimateCost(estimate).max_cost_nanos == 10 * USD
    estimates = pricing.prices.BatchEstimateCosts(pb.BatchEstimateCostsRequest(requests=[estimate])).results
    assert estimates[0].estimate.max_cost_nanos == 10 * USD
    costs = pb.BatchCalculateCostsRequest(
        requests=[
            pb.CalculateCostRequest(**call | {"account_id": account}, usage=Usage(input_tokens=1_000_000))
            for account in ("acme", "umbrella", "acme")
        ]
    )
    results = pricing.prices.BatchCalculateCosts(costs).results
    assert [result.cost.cost_nanos for result in results] == [10 * USD, 5 * USD, 10 * USD]
    customer = client(pricing.server, "ACCOUNT", "acme").prices
    price = customer.GetPrice(pb.GetPriceRequest(provider="openai", model="gpt-4o"))
    assert [rate.nanos_per_million for rate in price.rates] == [10 * USD, 30 * USD]
    assert (price.version, price.display_name) == (2, "GPT-4o")


def test_own_rates_take_the_place_of_the_catalogues(pricing, admin, refused):
    admin.prices.SetPriceOverride(setting(rates=[Rate(component="input", nanos_per_million=7 * USD)]))
    assert cost_of(pricing) == (7 * USD, 2)
    output = pb.CalculateCostRequest(account_id="acme", provider="openai", model="gpt-4o", usage=Usage(output_tokens=1))
    assert refused(pricing.prices.CalculateCost, output).reason == "COMPONENT_NOT_PRICED"


def test_override_of_all_models_follows_the_catalogue(pricing, admin):
    admin.prices.SetPriceOverride(setting(model="*"))
    assert cost_of(pricing, model="gpt-4-turbo") == (5 * USD, 2)
    admin.prices.PublishPrices(publishing(6))
    assert cost_of(pricing) == (3 * USD, 3)
    admin.prices.SetPriceOverride(setting("o2", multiplier_millionths=1_000_000))
    assert cost_of(pricing) == (6 * USD, 4)


def test_withdrawn_model_has_no_price_for_anyone(pricing, admin, refused):
    admin.prices.SetPriceOverride(setting(rates=[Rate(component="input", nanos_per_million=1)]))
    gone = Price(provider="openai", model="gpt-4o", withdrawn=True)
    admin.prices.PublishPrices(pb.PublishPricesRequest(prices=[gone], request_id="p1"))
    assert refused(lambda _: cost_of(pricing), None).reason == "PRICE_NOT_FOUND"


def test_override_holds_from_its_moment_until_its_end(pricing, admin):
    start, end = in_seconds(3600), in_seconds(7200)
    admin.prices.SetPriceOverride(setting(multiplier_millionths=2_000_000, effective_from=start, effective_until=end))
    assert cost_of(pricing) == (5 * USD, 1)
    assert cost_of(pricing, at=start) == (10 * USD, 2)
    assert cost_of(pricing, at=Timestamp(seconds=end.seconds - 1)) == (10 * USD, 2)
    assert cost_of(pricing, at=end) == (5 * USD, 1)


def test_ended_override_stays_known_for_what_it_priced(pricing, admin, refused):
    admin.prices.SetPriceOverride(setting())
    while_it_held = in_seconds(0)
    admin.prices.DeletePriceOverride(ending(reason="contract over"))
    assert cost_of(pricing) == (5 * USD, 1)
    assert cost_of(pricing, at=while_it_held) == (5 * USD // 2, 2)
    assert cost_of(pricing, price_version=2) == (5 * USD // 2, 2)
    assert cost_of(pricing, price_version=3) == (5 * USD, 1)
    assert listed(admin) == []
    (gone,) = listed(admin, include_ended=True)
    assert (gone.version, gone.multiplier_millionths) == (2, 500_000)
    assert gone.effective_until.ToNanoseconds() > gone.effective_from.ToNanoseconds()
    error = refused(admin.prices.DeletePriceOverride, ending("e2"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "OVERRIDE_NOT_FOUND")


def test_usage_row_is_priced_as_it_was_by_account_moment_and_version(pricing, admin):
    """A row names the version; with its moment that is exact, whatever was published, set or ended since."""
    rows = []

    def booked():
        now = in_seconds(0)
        rows.append((now, *cost_of(pricing)))

    booked()
    admin.prices.SetPriceOverride(setting())
    booked()
    admin.prices.PublishPrices(publishing(6, "p1"))
    booked()
    admin.prices.PublishPrices(publishing(100, "p2", effective_from=in_seconds(3600)))
    admin.prices.SetPriceOverride(setting("o2", multiplier_millionths=3_000_000, effective_from=in_seconds(3600)))
    booked()
    admin.prices.SetPriceOverride(setting("o3", multiplier_millionths=2_000_000))
    booked()
    admin.prices.DeletePriceOverride(ending())
    booked()
    assert [(cost // 10**8, version) for _, cost, version in rows] == [
        *((50, 1), (25, 2), (30, 3), (30, 3), (120, 6), (60, 3))
    ]
    for at, cost_nanos, version in rows:
        assert cost_of(pricing, at=at, price_version=version) == (cost_nanos, version)


def test_repeat_sets_and_ends_once(pricing, admin):
    first = admin.prices.SetPriceOverride(setting())
    again, call = admin.prices.SetPriceOverride.with_call(setting())
    assert first == again
    assert dict(call.trailing_metadata())["idempotency-replayed"] == "true"
    admin.prices.DeletePriceOverride(ending())
    _, call = admin.prices.DeletePriceOverride.with_call(ending())
    assert dict(call.trailing_metadata())["idempotency-replayed"] == "true"
    assert admin.prices.SetPriceOverride(setting()) == first  # and it does not hold again
    assert cost_of(pricing) == (5 * USD, 1)
    versions = admin.prices.ListCatalogueVersions(pb.ListCatalogueVersionsRequest()).versions
    assert [version.version for version in versions] == [3, 2, 1]


def test_request_id_of_another_write_is_refused(admin, refused):
    admin.prices.SetPriceOverride(setting())
    for call, request in (
        (admin.prices.SetPriceOverride, setting(multiplier_millionths=1)),
        (admin.prices.DeletePriceOverride, ending("o1")),
        (admin.prices.PublishPrices, publishing(6, "o1")),
    ):
        error = refused(call, request)
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT")


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (setting(""), {"request_id"}),
        (setting(account=""), {"price_override.account_id"}),
        (setting(model=""), {"price_override.model"}),
        (setting(reason="x" * 501), {"reason"}),
        (setting(multiplier_millionths=-1), {"price_override.multiplier_millionths"}),
        (
            setting(rates=[Rate(component="x", nanos_per_million=-1)]),
            {
                "price_override.rates[0].component",
                "price_override.rates[0].nanos_per_million",
            },
        ),
        (setting(rates=[Rate(component="input")] * 1001), {"price_override.rates"}),
        (setting(rates=[Rate(component="input")] * 257), {"price_override.rates"}),
        (setting(multiplier_millionths=1, effective_from=Timestamp(seconds=1)), {"price_override.effective_from"}),
        (setting(multiplier_millionths=1, effective_until=Timestamp(seconds=1)), {"price_override.effective_until"}),
        (
            setting(multiplier_millionths=1, effective_until=Timestamp(seconds=2**62)),
            {"price_override.effective_until"},
        ),
    ],
)
def test_bad_override_is_refused_by_field_and_writes_nothing(admin, refused, request_, fields):
    error = refused(admin.prices.SetPriceOverride, request_)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {violation.field for violation in error.violations} == fields
    assert listed(admin, include_ended=True) == []


@pytest.mark.parametrize(("provider", "model"), [("openai", "gpt-5o"), ("opnai", "*")])
def test_override_of_what_is_not_in_the_catalogue_is_refused(admin, refused, provider, model):
    request = setting(model=model)
    request.price_override.provider = provider
    error = refused(admin.prices.SetPriceOverride, request)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "PRICE_NOT_FOUND")


def test_overrides_of_an_account_have_a_limit(admin, refused, monkeypatch):
    monkeypatch.setattr(override_service, "MAX_OVERRIDES", 2)
    for number, account in enumerate(("acme", "acme", "umbrella")):
        admin.prices.SetPriceOverride(setting(f"o{number}", account))
    error = refused(admin.prices.SetPriceOverride, setting("o3"))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TOO_MANY_OVERRIDES")
    admin.prices.DeletePriceOverride(ending())
    admin.prices.SetPriceOverride(setting("o3"))


def test_overrides_are_listed_in_pages_by_account(admin):
    for number, (account, model) in enumerate(
        [("b", "gpt-4o"), ("a", "gpt-4o"), ("b", "*"), ("a", "gpt-4-turbo"), ("a", "gpt-4o")]
    ):
        admin.prices.SetPriceOverride(setting(f"o{number}", account, model))
    found, token = [], ""
    while True:
        page = admin.prices.ListPriceOverrides(pb.ListPriceOverridesRequest(page_size=2, page_token=token))
        found += [(one.account_id, one.model, one.version) for one in page.price_overrides]
        token = page.next_page_token
        if not token:
            break
    assert found == [("a", "gpt-4-turbo", 5), ("a", "gpt-4o", 3), ("a", "gpt-4o", 6), ("b", "*", 4), ("b", "gpt-4o", 2)]
    assert [one.account_id for one in listed(admin, account_id="b")] == ["b", "b"]


def test_only_operators_set_overrides(pricing, client, refused):
    customer = client(pricing.server, "ACCOUNT", "acme").prices
    for call, request in (
        (customer.SetPriceOverride, setting()),
        (customer.DeletePriceOverride, ending()),
        (customer.ListPriceOverrides, pb.ListPriceOverridesRequest(account_id="acme")),
    ):
        assert refused(call, request).code is grpc.StatusCode.PERMISSION_DENIED


def test_overrides_at_once_take_turns(pricing, admin):
    def send(number):
        return admin.prices.SetPriceOverride(setting(f"o{number}", multiplier_millionths=number + 1)).version

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(send, range(8)))
    assert sorted(versions) == list(range(2, 10))
    last = versions.index(9) + 1
    assert cost_of(pricing) == (5000 * last, 9)


@pytest.mark.parametrize("table", ["price_overrides", "price_override_ends"])
def test_database_refuses_to_overwrite_overrides(pricing, admin, settings, table):
    admin.prices.SetPriceOverride(setting())
    admin.prices.DeletePriceOverride(ending())
    engine = sync_engine(settings)
    try:
        for statement in (f"UPDATE {table} SET account_id = 'x'", f"DELETE FROM {table}", f"TRUNCATE {table}"):
            with engine.begin() as connection, pytest.raises(sqlalchemy.exc.ProgrammingError, match="never changed"):
                connection.execute(sqlalchemy.text(statement))
    finally:
        engine.dispose()


class Follower:
    """A watch that keeps a picture as the proxy does."""

    def __init__(self, pricing):
        self.catalogue = Catalogue()
        self.changes = queue.Queue()
        self._call = pricing.prices.WatchCatalogue(pb.WatchCatalogueRequest())
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self):
        try:
            for change in self._call:
                self.catalogue.take_in(change)
                self.changes.put(change)
        except grpc.RpcError:
            pass  # cancelled

    def rate(self, account="acme"):
        card = self.catalogue.card(account, "openai", "gpt-4o", datetime.now(UTC))
        return card.rates[0].nanos_per_million

    def stop(self):
        self._call.cancel()
        self._thread.join(5)


@pytest.fixture
def follow():
    made = []

    def following(pricing):
        made.append(Follower(pricing))
        while not made[-1].changes.get(timeout=5).complete:
            pass
        return made[-1]

    yield following
    for one in made:
        one.stop()


def test_watch_tells_of_overrides_and_their_end_within_a_second(serve, settings, client, follow):
    with serve(settings) as one, serve(settings) as other:
        admin, follower = client(one, "ADMIN"), follow(client(other))
        for write, request, rate in (
            (admin.prices.SetPriceOverride, setting(), 5 * USD // 2),
            (admin.prices.SetPriceOverride, setting("o2", multiplier_millionths=2_000_000), 10 * USD),
            (admin.prices.DeletePriceOverride, ending(), 5 * USD),
        ):
            started = time.monotonic()
            write(request)
            follower.changes.get(timeout=5)
            assert time.monotonic() - started < 1
            assert follower.rate() == rate
            assert follower.rate("umbrella") == 5 * USD
            assert cost_of(client(other))[0] == rate
        follower.stop()


def test_watch_that_begins_later_sees_what_holds_and_is_to_come(pricing, admin, follow):
    admin.prices.SetPriceOverride(setting("o1", account="gone"))
    admin.prices.DeletePriceOverride(ending(account="gone"))
    admin.prices.SetPriceOverride(setting("o2"))
    admin.prices.SetPriceOverride(setting("o3", "later", multiplier_millionths=1, effective_from=in_seconds(3600)))
    follower = follow(pricing)
    assert (follower.rate(), follower.rate("gone"), follower.rate("later")) == (5 * USD // 2, 5 * USD, 5 * USD)
    later = follower.catalogue.card("later", "openai", "gpt-4o", datetime.now(UTC) + timedelta(hours=2))
    assert later.rates[0].nanos_per_million == 5000
