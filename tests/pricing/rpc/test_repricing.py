"""Owns the proof that a period is re-priced exactly from the ledger's records, in bounded memory and time."""

from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pricing_peers import Ledger, Subscriptions, served
from tollkeeper.ledger.v1.resources_pb2 import UsageRecord
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1.resources_pb2 import Price, PriceOverride, Rate

USD = 1_000_000_000
START, END = Timestamp(seconds=1_790_000_000), Timestamp(seconds=1_790_086_400)
INSIDE = Timestamp(seconds=1_790_000_000 + 60)


def record(model="gpt-4o", provider="openai", cost_nanos=0, at=INSIDE, **counts):
    counts = counts or {"input_tokens": 1_000_000}
    return UsageRecord(provider=provider, model=model, cost_nanos=cost_nanos, price_version=1, created_at=at, **counts)


def asking(version=2, account="", start=START, end=END):
    return pb.RepriceRequest(account_id=account, from_time=start, to_time=end, price_version=version)


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
def server(serve, settings, ledger):
    with served(ledger, Subscriptions()) as address:
        told = settings.model_copy(update={"ledger_addr": address, "service_token": "the-token-of-pricing"})
        with serve(told) as server:
            yield server


@pytest.fixture
def admin(server, client):
    return client(server, "ADMIN")


def publish(admin, model="gpt-4o", request_id="p1", **usd):
    rates = [Rate(component=component, nanos_per_million=value * USD) for component, value in usd.items()]
    admin.prices.PublishPrices(
        pb.PublishPricesRequest(
            prices=[Price(provider="openai", model=model, mode="chat", rates=rates)], request_id=request_id
        )
    )


def test_period_is_repriced_by_model_largest_difference_first(admin, ledger):
    turbo, small = record("gpt-4-turbo", cost_nanos=10 * USD), record("gpt-3.5-turbo", cost_nanos=USD // 2)
    large = record(cost_nanos=5 * USD)
    ledger.records = {"a": [large, turbo], "b": [large, turbo, large, small]}
    publish(admin, "gpt-4o", input=4)
    publish(admin, "gpt-4-turbo", "p2", input=20)
    publish(admin, "gpt-3.5-turbo", "p3", input=1)
    found = admin.prices.Reprice(asking(4))
    assert (found.cost_nanos, found.repriced_cost_nanos) == (35_500_000_000, 53 * USD)
    assert [(one.model, one.requests, one.cost_nanos, one.repriced_cost_nanos) for one in found.models] == [
        ("gpt-4-turbo", 2, 20 * USD, 40 * USD),
        ("gpt-4o", 3, 15 * USD, 12 * USD),
        ("gpt-3.5-turbo", 1, USD // 2, USD),
    ]
    assert (found.unpriced_requests, found.unpriced_cost_nanos) == (0, 0)
    assert ledger.pages == 3  # a's one, b's two
    assert ledger.tokens == {"Bearer the-token-of-pricing"}


def test_version_that_priced_a_period_gives_its_cost_again(admin, ledger):
    ledger.records = {"a": [record(cost_nanos=5 * USD)]}
    publish(admin, input=6)
    found = admin.prices.Reprice(asking(1))
    assert found.cost_nanos == found.repriced_cost_nanos == 5 * USD


def test_every_count_of_a_record_is_priced(admin, ledger):
    names = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "reasoning", "audio_input", "second")
    publish(admin, "rich", "p1", **{name: 10**number for number, name in enumerate(names)})
    ledger.records = {
        "a": [
            record(
                "rich",
                input_tokens=10_000_000,
                output_tokens=5_000_000,
                cached_tokens=1_000_000,
                cache_write_tokens=5_000_000,
                reasoning_tokens=2_000_000,
                units={"cache_write_1h": 3_000_000, "audio_input": 1_000_000, "second": 4_000},
            )
        ]
    }
    found = admin.prices.Reprice(asking(2))
    plain_input, plain_output, cached, five, hour, reasoning, audio = 3, 3, 1, 2, 3, 2, 1
    exact = sum(
        count * 10**number * USD
        for number, count in enumerate((plain_input, plain_output, cached, five, hour, reasoning, audio))
    )
    assert found.repriced_cost_nanos == exact + 4 * 10**7 * USD // 10**6


def test_service_tier_of_a_record_counts(admin, ledger):
    rates = [
        Rate(component="input", nanos_per_million=4 * USD),
        Rate(component="input", service_tier="batch", nanos_per_million=2 * USD),
    ]
    admin.prices.PublishPrices(
        pb.PublishPricesRequest(
            prices=[Price(provider="openai", model="gpt-4o", mode="chat", rates=rates)], request_id="p1"
        )
    )
    ledger.records = {"a": [record(input_tokens=1_000_000, service_tier="batch"), record()]}
    assert admin.prices.Reprice(asking(2)).repriced_cost_nanos == 6 * USD


@pytest.mark.parametrize(
    "one",
    [
        record("gpt-9", cost_nanos=7),
        record(cost_nanos=7, input_tokens=1, service_tier="flex"),
        record(cost_nanos=7, units={"unheard_of": 1}),
        record(cost_nanos=7, units={"image": 1}),
        record(cost_nanos=7, input_tokens=1, cached_tokens=2),
        record("", "", cost_nanos=7),
    ],
)
def test_record_without_a_price_is_counted_and_left_out(admin, ledger, one):
    ledger.records = {"a": [one, record("gpt-4-turbo", cost_nanos=10 * USD)]}
    found = admin.prices.Reprice(asking(1))
    assert (found.cost_nanos, found.repriced_cost_nanos) == (10 * USD, 10 * USD)
    assert (found.unpriced_requests, found.unpriced_cost_nanos) == (1, 7)
    (unpriced,) = [model for model in found.models if model.unpriced_requests]
    assert (unpriced.model, unpriced.requests, unpriced.cost_nanos) == (one.model, 0, 0)


def test_period_and_account_narrow_what_is_repriced(admin, ledger):
    before, last = Timestamp(seconds=START.seconds - 1), Timestamp(seconds=END.seconds - 1)
    ledger.records = {
        "a": [record(cost_nanos=1, at=before), record(cost_nanos=10, at=START), record(cost_nanos=100, at=last)],
        "b": [record(cost_nanos=1000, at=END), record(cost_nanos=10_000)],
    }
    assert admin.prices.Reprice(asking(1)).cost_nanos == 10_110
    assert admin.prices.Reprice(asking(1, "a")).cost_nanos == 110


def test_account_is_repriced_by_its_overrides_as_they_stood_with_the_version(admin, ledger):
    ledger.records = {"acme": [record(cost_nanos=5 * USD)], "other": [record(cost_nanos=5 * USD)]}
    override = PriceOverride(account_id="acme", provider="openai", model="gpt-4o", multiplier_millionths=500_000)
    admin.prices.SetPriceOverride(pb.SetPriceOverrideRequest(price_override=override, request_id="o1"))
    admin.prices.DeletePriceOverride(
        pb.DeletePriceOverrideRequest(account_id="acme", provider="openai", model="gpt-4o", request_id="e1")
    )
    repriced = [admin.prices.Reprice(asking(version)).repriced_cost_nanos for version in (1, 2, 3)]
    assert repriced == [10 * USD, 15 * USD // 2, 10 * USD]


def test_override_that_was_over_does_not_reprice_later_calls(admin, ledger):
    now, until, later, end = (Timestamp() for _ in range(4))
    now.GetCurrentTime()
    until.seconds, later.seconds, end.seconds = now.seconds + 3600, now.seconds + 7200, now.seconds + 9000
    override = PriceOverride(
        account_id="acme", provider="openai", model="gpt-4o", multiplier_millionths=500_000, effective_until=until
    )
    admin.prices.SetPriceOverride(pb.SetPriceOverrideRequest(price_override=override, request_id="o1"))
    ledger.records = {"acme": [record(), record(at=later)]}
    found = admin.prices.Reprice(asking(2, start=START, end=end))
    assert found.repriced_cost_nanos == 5 * USD // 2 + 5 * USD


def test_without_a_ledger_it_is_refused(serve, settings, client, refused):
    with serve(settings) as server:
        error = refused(client(server, "ADMIN").prices.Reprice, asking(1))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEDGER_NOT_CONFIGURED")


def test_unknown_version_or_account_is_refused(admin, refused):
    error = refused(admin.prices.Reprice, asking(2))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "PRICE_NOT_FOUND")
    error = refused(admin.prices.Reprice, asking(1, "nobody"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND")


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.RepriceRequest(), {"from_time", "to_time", "price_version"}),
        (asking(-1, "!"), {"price_version", "account_id"}),
        (asking(start=END, end=START), {"to_time"}),
        (asking(start=START, end=START), {"to_time"}),
        (asking(end=Timestamp(seconds=START.seconds + 367 * 86_400)), {"to_time"}),
        (asking(end=Timestamp(seconds=2**62)), {"to_time"}),
    ],
)
def test_bad_request_is_refused_by_field(admin, refused, request_, fields):
    error = refused(admin.prices.Reprice, request_)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {violation.field for violation in error.violations} == fields


def test_period_at_the_end_of_time_is_no_fault_of_ours(admin, refused):
    late, later, latest = Timestamp(), Timestamp(), Timestamp()
    late.FromDatetime(datetime(9998, 12, 30, tzinfo=UTC))
    later.FromDatetime(datetime(9998, 12, 31, tzinfo=UTC))
    latest.FromDatetime(datetime(9999, 12, 31, tzinfo=UTC))
    assert admin.prices.Reprice(asking(1, start=late, end=later)).cost_nanos == 0
    error = refused(admin.prices.Reprice, asking(1, start=late, end=latest))
    assert (error.code, [v.field for v in error.violations]) == (grpc.StatusCode.INVALID_ARGUMENT, ["to_time"])


def test_deadline_ends_it(admin, ledger, refused):
    ledger.records = {"a": [record(cost_nanos=1)]}
    ledger.block.clear()
    error = refused(admin.prices.Reprice, asking(1), timeout=0.3)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    ledger.block.set()
    assert admin.prices.Reprice(asking(1)).cost_nanos == 1


def test_ledger_that_is_away_is_said_so(serve, settings, client, refused):
    with serve(settings.model_copy(update={"ledger_addr": "127.0.0.1:1"})) as server:
        error = refused(client(server, "ADMIN").prices.Reprice, asking(1))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "PEER_UNAVAILABLE")


def test_only_operators_reprice(server, client, refused):
    error = refused(client(server, "ACCOUNT", "acme").prices.Reprice, asking(1, "acme"))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
