"""Owns the proof that prices are published as versions: whole or not, once, audited, in force from their moment."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import sqlalchemy
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1.resources_pb2 import Price, Rate, Usage

from services.kit.db import sync_engine
from services.pricing import store

USD = 1_000_000_000


def price(model="gpt-4o", usd=6, **fields):
    fields.setdefault("mode", "chat")
    fields.setdefault("rates", [Rate(component="input", nanos_per_million=usd * USD)])
    return Price(provider="openai", model=model, **fields)


def publish(*prices, request_id="r1", **fields):
    return pb.PublishPricesRequest(prices=prices, request_id=request_id, **fields)


def cost_of(pricing, model="gpt-4o", **fields):
    usage = Usage(input_tokens=1_000_000)
    return pricing.prices.CalculateCost(pb.CalculateCostRequest(provider="openai", model=model, usage=usage, **fields))


@pytest.fixture
def admin(pricing, client):
    return client(pricing.server, "ADMIN")


def test_published_price_is_charged_at_once_and_the_old_one_stays_known(pricing, admin):
    version = admin.prices.PublishPrices(publish(price(), reason="dearer"))
    assert (version.version, version.author, version.reason, version.prices_changed) == (2, "the-admin", "dearer", 1)
    assert (cost_of(pricing).cost_nanos, cost_of(pricing).price_version) == (6 * USD, 2)
    assert cost_of(pricing, price_version=1).cost_nanos == 5 * USD
    before = Timestamp()
    before.FromDatetime(version.effective_from.ToDatetime(UTC) - timedelta(microseconds=1))
    assert cost_of(pricing, at=before).price_version == 1
    assert cost_of(pricing, "gpt-4-turbo", price_version=2).price_version == 1


def test_price_to_come_is_not_charged_before_its_moment(pricing, admin):
    moment = datetime.now(UTC) + timedelta(seconds=1.5)
    at = Timestamp()
    at.FromDatetime(moment)
    admin.prices.PublishPrices(publish(price(), effective_from=at))
    assert cost_of(pricing).cost_nanos == 5 * USD
    assert cost_of(pricing, at=at).cost_nanos == 6 * USD
    time.sleep(max(0, (moment - datetime.now(UTC)).total_seconds()) + 0.05)
    assert cost_of(pricing).cost_nanos == 6 * USD


def test_replayed_publication_publishes_once(pricing, admin):
    first, _ = admin.prices.PublishPrices.with_call(publish(price()))
    second, call = admin.prices.PublishPrices.with_call(publish(price()))
    assert first == second
    assert dict(call.trailing_metadata())["idempotency-replayed"] == "true"
    assert [v.version for v in admin.prices.ListCatalogueVersions(pb.ListCatalogueVersionsRequest()).versions] == [2, 1]


def test_other_body_with_the_same_key_is_refused(admin, refused):
    admin.prices.PublishPrices(publish(price()))
    error = refused(admin.prices.PublishPrices, publish(price(usd=7)))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT")


def test_publication_names_all_that_is_wrong_and_writes_nothing(pricing, admin, refused):
    bad = [
        price(rates=[Rate(component="inputs", nanos_per_million=-1)]),
        price("gpt-4-turbo", mode="talk"),
        price(),
        price("fine"),
        price("empty", rates=[]),
        price("gone", withdrawn=True),
        price("", max_input_tokens=-1),
    ]
    error = refused(admin.prices.PublishPrices, publish(*bad))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {violation.field for violation in error.violations} == {
        "prices[0].rates[0].component",
        "prices[0].rates[0].nanos_per_million",
        "prices[1].mode",
        "prices[2]",
        "prices[4].rates",
        "prices[5].rates",
        "prices[6].model",
        "prices[6].max_input_tokens",
    }
    assert refused(lambda _: cost_of(pricing, "fine"), None).reason == "PRICE_NOT_FOUND"
    assert len(admin.prices.ListCatalogueVersions(pb.ListCatalogueVersionsRequest()).versions) == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"effective_from": Timestamp(seconds=1_700_000_000)}, "effective_from"),
        ({"reason": "x" * 501}, "reason"),
        ({"max_move_percent": -1}, "max_move_percent"),
    ],
)
def test_bad_publication_field_is_named(admin, refused, fields, field):
    error = refused(admin.prices.PublishPrices, publish(price(), **fields))
    assert [violation.field for violation in error.violations] == [field]
    assert [v.field for v in refused(admin.prices.PublishPrices, publish()).violations] == ["prices"]


def test_move_above_the_limit_is_refused_up_and_down(pricing, admin, refused):
    for number, usd in enumerate((7, 3)):
        error = refused(
            admin.prices.PublishPrices, publish(price(usd=usd), request_id=f"r{number}", max_move_percent=20)
        )
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PRICE_MOVE_TOO_LARGE")
        assert [violation.field for violation in error.violations] == ["prices[0].rates[0].nanos_per_million"]
    admin.prices.PublishPrices(publish(price(usd=6), price("new", usd=900), request_id="r9", max_move_percent=20))
    assert cost_of(pricing).cost_nanos == 6 * USD


def test_any_move_may_be_allowed_as_in_an_import_also_from_free(pricing, admin, refused):
    admin.prices.PublishPrices(publish(price("m", usd=0)))
    short = publish(price("m", usd=3), request_id="r2", max_move_percent=999_999)
    assert refused(admin.prices.PublishPrices, short).reason == "PRICE_MOVE_TOO_LARGE"
    admin.prices.PublishPrices(publish(price("m", usd=3), request_id="r2", max_move_percent=1_000_000))


def test_move_is_measured_on_what_a_call_pays_also_where_a_rate_is_left_out(pricing, admin, refused):
    plain = [Rate(component="input", nanos_per_million=3 * USD), Rate(component="output", nanos_per_million=15 * USD)]
    cached = [*plain, Rate(component="cache_read", nanos_per_million=3 * USD // 10)]
    admin.prices.PublishPrices(publish(price("m", rates=cached)))
    left_out = publish(price("m", rates=plain), request_id="r2", max_move_percent=20)
    error = refused(admin.prices.PublishPrices, left_out)
    assert error.reason == "PRICE_MOVE_TOO_LARGE"  # ten times as much for what was read from the cache
    assert [violation.field for violation in error.violations] == ["prices[0].rates"]
    admin.prices.PublishPrices(publish(price("m", rates=plain), request_id="r2", max_move_percent=900))
    error = refused(admin.prices.PublishPrices, publish(price("m", rates=cached), request_id="r3", max_move_percent=20))
    assert [violation.field for violation in error.violations] == ["prices[0].rates[2].nanos_per_million"]


def test_withdrawn_model_has_no_price_until_it_is_published_again(pricing, admin, refused):
    admin.prices.PublishPrices(publish(Price(provider="openai", model="gpt-4o", withdrawn=True)))
    assert refused(lambda _: cost_of(pricing), None).reason == "PRICE_NOT_FOUND"
    assert cost_of(pricing, price_version=1).cost_nanos == 5 * USD
    admin.prices.PublishPrices(publish(price(), request_id="r2"))
    assert cost_of(pricing).cost_nanos == 6 * USD


def test_only_operators_publish(pricing, client, refused):
    error = refused(client(pricing.server, "ACCOUNT", "acme").prices.PublishPrices, publish(price()))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED


def test_prices_are_listed_in_pages_as_of_one_moment(pricing, admin):
    names, token, pages = [], "", 0
    while True:
        page = admin.prices.ListPrices(pb.ListPricesRequest(page_size=4, page_token=token))
        names += [(found.provider, found.model) for found in page.prices]
        pages += 1
        if pages == 1:  # comes in front of what is still to be listed, and is not seen
            admin.prices.PublishPrices(publish(price("zzz")))
        token = page.next_page_token
        if not token:
            break
    assert (pages, len(names)) == (4, 15)
    assert names == sorted(names)
    only = admin.prices.ListPrices(pb.ListPricesRequest(provider="openai", model_prefix="gpt-4"))
    assert [found.model for found in only.prices] == ["gpt-4-turbo", "gpt-4o"]


@pytest.mark.parametrize("token", ["x", "!!", "W10", "a" * 5000, "bnVsbA"])
def test_foreign_page_token_is_refused(admin, refused, token):
    for call, request in (
        (admin.prices.ListPrices, pb.ListPricesRequest),
        (admin.prices.ListCatalogueVersions, pb.ListCatalogueVersionsRequest),
    ):
        assert [v.field for v in refused(call, request(page_token=token)).violations] == ["page_token"]


def test_page_token_of_another_query_is_refused(admin, refused):
    token = admin.prices.ListPrices(pb.ListPricesRequest(page_size=1)).next_page_token
    error = refused(admin.prices.ListPrices, pb.ListPricesRequest(provider="openai", page_token=token))
    assert [violation.field for violation in error.violations] == ["page_token"]


def test_versions_are_listed_newest_first_in_pages(admin):
    for number in range(4):
        admin.prices.PublishPrices(publish(price(usd=6 + number), request_id=f"r{number}"))
    found, token = [], ""
    while True:
        page = admin.prices.ListCatalogueVersions(pb.ListCatalogueVersionsRequest(page_size=2, page_token=token))
        found += [version.version for version in page.versions]
        token = page.next_page_token
        if not token:
            break
    assert found == [5, 4, 3, 2, 1]


def test_customer_sees_a_price(pricing, client):
    found = client(pricing.server, "ACCOUNT", "acme").prices.GetPrice(
        pb.GetPriceRequest(provider="openai", model="gpt-4o")
    )
    assert (found.version, found.display_name, len(found.rates)) == (1, "GPT-4o", 2)


@pytest.mark.parametrize(
    "statement", ["UPDATE prices SET mode = 'chat'", "DELETE FROM catalogue_versions", "TRUNCATE plans"]
)
def test_database_refuses_to_overwrite_what_was_published(pricing, settings, statement):
    engine = sync_engine(settings)
    try:
        with engine.begin() as connection, pytest.raises(sqlalchemy.exc.ProgrammingError, match="never changed"):
            connection.execute(sqlalchemy.text(statement))
    finally:
        engine.dispose()


def test_restart_does_not_overwrite_later_edits(serve, settings, client):
    with serve(settings) as server:
        client(server, "ADMIN").prices.PublishPrices(publish(price()))
    with serve(settings) as server:
        again = client(server)
        assert cost_of(again).cost_nanos == 6 * USD
        versions = client(server, "ADMIN").prices.ListCatalogueVersions(pb.ListCatalogueVersionsRequest()).versions
        assert [version.version for version in versions] == [2, 1]


def test_replicas_that_start_at_once_ship_the_catalogue_once(serve, settings, client):
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        contexts = [serve(settings) for _ in range(3)]
        servers = list(pool.map(lambda context: context.__enter__(), contexts))
        for context in contexts:
            stack.push(context.__exit__)
        assert [cost_of(client(server)).cost_nanos for server in servers] == [5 * USD] * 3
    engine = sync_engine(settings)
    with engine.connect() as connection:
        assert store.read_state(connection) == store.State(revision=1, latest_version=1)
    engine.dispose()


def test_publications_at_once_take_turns(pricing, admin):
    def send(number):
        return admin.prices.PublishPrices(publish(price(usd=10 + number), request_id=f"r{number}"))

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(send, range(8)))
    assert sorted(version.version for version in versions) == list(range(2, 10))
    last = max(versions, key=lambda version: version.version)
    assert cost_of(pricing).price_version == last.version
    moments = [v.effective_from.ToNanoseconds() for v in sorted(versions, key=lambda v: v.version)]
    assert moments == sorted(moments)


def test_price_published_by_one_replica_is_charged_by_another_within_a_second(serve, settings, client):
    with serve(settings) as one, serve(settings) as other:
        client(one, "ADMIN").prices.PublishPrices(publish(price()))
        deadline = time.monotonic() + 1
        while cost_of(client(other)).price_version == 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        client(one, "ADMIN").prices.PublishPrices(publish(price("fresh"), request_id="r2"))
        assert cost_of(client(other), "fresh").price_version == 3  # not known there yet, so looked for at once
