"""Owns the proof that costs and estimates over gRPC are exact, pinned to a version, and refused rather than guessed."""

from decimal import Decimal

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1.resources_pb2 import Usage


def call(model="gpt-4o", provider="openai", **fields):
    fields.setdefault("usage", Usage(input_tokens=1000, output_tokens=500))
    return pb.CalculateCostRequest(provider=provider, model=model, **fields)


@pytest.mark.parametrize(
    ("provider", "model", "input_usd", "output_usd"),
    [
        ("openai", "gpt-4o", "5", "15"),
        ("openai", "gpt-4-turbo", "10", "30"),
        ("openai", "gpt-3.5-turbo", "0.5", "1.5"),
        ("anthropic", "claude-3-opus", "15", "75"),
        ("anthropic", "claude-3-sonnet", "3", "15"),
        ("anthropic", "claude-3-haiku", "0.8", "4"),
        ("google", "gemini-2.0-flash", "0.075", "0.3"),
        ("google", "gemini-1.5-pro", "1.25", "5"),
        ("google", "gemini-1.5-flash", "0.075", "0.3"),
        ("bedrock", "claude-opus", "15", "75"),
        ("bedrock", "claude-sonnet", "3", "15"),
        ("huggingface", "text", "100", "200"),
    ],
)
def test_shipped_price_is_charged_to_the_nano(pricing, provider, model, input_usd, output_usd):
    cost = pricing.prices.CalculateCost(call(model, provider, usage=Usage(input_tokens=7, output_tokens=3)))
    exact = (7 * Decimal(input_usd) + 3 * Decimal(output_usd)) * 1000  # nanos a token, of dollars a million
    assert cost.cost_nanos == exact
    assert cost.billed_nanos == cost.cost_nanos
    assert cost.price_version == 1


def test_hugging_face_image_costs_a_cent(pricing):
    cost = pricing.prices.CalculateCost(call("image", "huggingface", usage=Usage(images=3)))
    assert cost.cost_nanos == 30_000_000
    assert [(part.component, part.quantity) for part in cost.parts] == [("image", 3)]


def test_cost_names_its_parts_and_shares(pricing):
    cost = pricing.prices.CalculateCost(call())
    assert (cost.cost_nanos, cost.input_cost_nanos, cost.output_cost_nanos) == (12_500_000, 5_000_000, 7_500_000)
    assert [(p.component, p.quantity, p.nanos_per_million, p.cost_nanos) for p in cost.parts] == [
        ("input", 1000, 5_000_000_000, 5_000_000),
        ("output", 500, 15_000_000_000, 7_500_000),
    ]


def test_prepaid_multiplier_bills_half_more(pricing):
    cost = pricing.prices.CalculateCost(call(multiplier_millionths=1_500_000))
    assert (cost.cost_nanos, cost.billed_nanos) == (12_500_000, 18_750_000)


@pytest.mark.parametrize("model", ["gpt-4o-2024-08-06", "GPT-4o", "gpt-4o ", "no-such-model", "*"])
def test_model_without_a_price_is_refused_never_free(pricing, refused, model):
    error = refused(pricing.prices.CalculateCost, call(model))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "PRICE_NOT_FOUND")
    assert error.metadata == {"provider": "openai", "model": model}


@pytest.mark.parametrize(
    ("fields", "component", "tier"),
    [
        ({"usage": Usage(images=1)}, "image", "standard"),
        ({"usage": Usage(milliseconds=1)}, "second", "standard"),
        ({"usage": Usage(characters=1)}, "character", "standard"),
        ({"service_tier": "batch"}, "input", "batch"),
        ({"service_tier": "priority"}, "input", "priority"),
    ],
)
def test_component_without_a_rate_is_refused_by_name(pricing, refused, fields, component, tier):
    error = refused(pricing.prices.CalculateCost, call(**fields))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "COMPONENT_NOT_PRICED")
    assert (error.metadata["component"], error.metadata["service_tier"]) == (component, tier)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"usage": Usage(input_tokens=-1)}, "usage.input_tokens"),
        ({"usage": Usage(input_tokens=10, cache_read_tokens=11)}, "usage.input_tokens"),
        ({"usage": Usage(output_tokens=10, reasoning_tokens=11)}, "usage.output_tokens"),
        ({"usage": None}, "usage"),
        ({"service_tier": "cheap"}, "service_tier"),
        ({"multiplier_millionths": -1}, "multiplier_millionths"),
        ({"price_version": -1}, "price_version"),
        ({"provider": "x" * 10_000}, "provider"),
        ({"model": "x" * 10_000}, "model"),
        ({"model": ""}, "model"),
        ({"at": Timestamp(seconds=2**62)}, "at"),
    ],
)
def test_bad_field_is_named(pricing, refused, fields, field):
    error = refused(pricing.prices.CalculateCost, call(**fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]


def test_cost_beyond_64_bits_is_refused(pricing, refused):
    error = refused(pricing.prices.CalculateCost, call(usage=Usage(input_tokens=2**62)))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "COST_TOO_LARGE")


def test_nothing_had_a_price_before_the_catalogue_began(pricing, refused):
    at = Timestamp(seconds=1_767_225_599)
    assert refused(pricing.prices.CalculateCost, call(at=at)).reason == "PRICE_NOT_FOUND"
    at.seconds += 1
    assert pricing.prices.CalculateCost(call(at=at)).cost_nanos == 12_500_000


def test_version_that_does_not_exist_is_refused(pricing, refused):
    assert pricing.prices.CalculateCost(call(price_version=1)).price_version == 1
    assert refused(pricing.prices.CalculateCost, call(price_version=2)).reason == "PRICE_NOT_FOUND"


def test_bad_line_of_a_batch_spoils_no_other(pricing):
    requests = [call(), call("no-such-model"), call(usage=Usage(input_tokens=-1)), call("gpt-4-turbo")]
    results = pricing.prices.BatchCalculateCosts(pb.BatchCalculateCostsRequest(requests=requests)).results
    assert [result.WhichOneof("kind") for result in results] == ["cost", "error", "error", "cost"]
    assert results[0].cost == pricing.prices.CalculateCost(requests[0])
    assert results[3].cost.cost_nanos == 25_000_000
    info = error_details_pb2.ErrorInfo()
    assert results[1].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert results[1].error.details[0].Unpack(info)
    assert info.reason == "PRICE_NOT_FOUND"


@pytest.mark.parametrize("count", [0, 10_001])
def test_batch_size_has_limits(pricing, refused, count):
    error = refused(pricing.prices.BatchCalculateCosts, pb.BatchCalculateCostsRequest(requests=[call()] * count))
    assert [violation.field for violation in error.violations] == ["requests"]


def test_estimate_is_an_upper_bound_with_a_best_guess_below(pricing):
    estimate = pricing.prices.EstimateCost(
        pb.EstimateCostRequest(
            provider="openai",
            model="gpt-4o",
            max_input_tokens=1000,
            max_output_tokens=500,
            multiplier_millionths=1_500_000,
        )
    )
    assert (estimate.max_cost_nanos, estimate.max_billed_nanos) == (12_500_000, 18_750_000)
    assert estimate.expected_cost_nanos == 5_000_000 + 250 * 15_000
    assert estimate.price_version == 1


def test_batch_of_estimates_answers_each(pricing):
    requests = [
        pb.EstimateCostRequest(provider="openai", model="gpt-4o", max_input_tokens=1),
        pb.EstimateCostRequest(provider="openai", model="gpt-4o", max_input_tokens=-1),
        pb.EstimateCostRequest(provider="openai", model="none"),
    ]
    results = pricing.prices.BatchEstimateCosts(pb.BatchEstimateCostsRequest(requests=requests)).results
    assert [result.WhichOneof("kind") for result in results] == ["estimate", "error", "error"]


def test_costs_are_for_services_only(pricing, client, refused):
    for role, account in (("ACCOUNT", "acme"), ("ADMIN", "")):
        error = refused(client(pricing.server, role, account).prices.CalculateCost, call())
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
