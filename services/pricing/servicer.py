"""Owns the RPCs of prices: checks each request, hands it to the service, makes the answer's message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
from google.rpc import status_pb2  # type: ignore[import-untyped]
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1 import pricing_service_pb2_grpc, resources_pb2

from services.kit.call import current_identity
from services.kit.errors import DETAILS_KEY, ServiceError, wire_form
from services.kit.paging import page_position, page_token
from services.kit.times import moment_of
from services.kit.validation import Violations
from services.pricing import wire
from services.pricing.costing import Call, Costing, Counts
from services.pricing.litellm.wire import imported_to_proto, order_from_proto
from services.pricing.model import PublishedPrice
from services.pricing.moves import ANY_MOVE_PERCENT
from services.pricing.override_service import OverrideService
from services.pricing.override_servicer import OverrideRpcs
from services.pricing.overrides import MAX_MULTIPLIER_MILLIONTHS
from services.pricing.repricing import MAX_PERIOD, Repricer
from services.pricing.service import PricingService, Publication
from services.pricing.shipped import MAX_MODEL_CHARS
from services.pricing.watching import Watches
from services.rating import AT_COST_MILLIONTHS, MODES, SERVICE_TIERS, STANDARD, InvalidPriceCard
from services.rating.wire import card_from_proto, cost_to_proto, usage_from_proto

MAX_BATCH = 10_000

_R = TypeVar("_R")


class PricingServicer(OverrideRpcs, pricing_service_pb2_grpc.PricingServiceServicer):
    """Prices and costs."""

    def __init__(
        self, service: PricingService, overrides: OverrideService, repricer: Repricer, watches: Watches
    ) -> None:
        self._service = service
        self._overrides = overrides
        self._repricer = repricer
        self._watches = watches

    def CalculateCost(self, request: pb.CalculateCostRequest, _context: grpc.ServicerContext) -> resources_pb2.Cost:
        """See the contract."""
        return _cost(self._service.costing(), request)

    def BatchCalculateCosts(
        self, request: pb.BatchCalculateCostsRequest, _context: grpc.ServicerContext
    ) -> pb.BatchCalculateCostsResponse:
        """See the contract."""
        _check_batch(request.requests)
        costing = self._service.costing()
        answer = pb.BatchCalculateCostsResponse()
        for one in request.requests:
            cost, error = _each(_cost, costing, one)
            answer.results.add(cost=cost, error=error)
        return answer

    def EstimateCost(self, request: pb.EstimateCostRequest, _context: grpc.ServicerContext) -> pb.CostEstimate:
        """See the contract."""
        return _estimate(self._service.costing(), request)

    def BatchEstimateCosts(
        self, request: pb.BatchEstimateCostsRequest, _context: grpc.ServicerContext
    ) -> pb.BatchEstimateCostsResponse:
        """See the contract."""
        _check_batch(request.requests)
        costing = self._service.costing()
        answer = pb.BatchEstimateCostsResponse()
        for one in request.requests:
            estimate, error = _each(_estimate, costing, one)
            answer.results.add(estimate=estimate, error=error)
        return answer

    def GetPrice(self, request: pb.GetPriceRequest, _context: grpc.ServicerContext) -> resources_pb2.Price:
        """See the contract."""
        v = Violations()
        _check_model(v, request.provider, request.model)
        v.identifier("account_id", request.account_id)
        at = moment_of(v, "at", request.at) if request.HasField("at") else None
        v.raise_if_any()
        call = Call(request.provider, request.model, at=at, account_id=request.account_id)
        return wire.price_to_proto(self._service.costing().price_of(call))

    def ListPrices(self, request: pb.ListPricesRequest, _context: grpc.ServicerContext) -> pb.ListPricesResponse:
        """See the contract. All pages of one listing are as of the moment of its first."""
        v = Violations()
        v.identifier("provider", request.provider, required=False)
        v.text("model_prefix", request.model_prefix, max_length=MAX_MODEL_CHARS)
        size = v.page_size("page_size", request.page_size, default=100)
        asked = moment_of(v, "at", request.at) if request.HasField("at") else None
        after = page_position(v, request, str, str, datetime)
        at = asked or (after[2] if after else datetime.now(UTC))
        v.raise_if_any()
        found = self._service.prices_in_force(at, request.provider, request.model_prefix)
        if after:
            found = [price for price in found if (price.provider, price.model) > (after[0], after[1])]
        page = found[:size]
        more = len(found) > size
        token = page_token(request, page[-1].provider, page[-1].model, at) if more else ""
        return pb.ListPricesResponse(prices=map(wire.price_to_proto, page), next_page_token=token)

    def PublishPrices(
        self, request: pb.PublishPricesRequest, context: grpc.ServicerContext
    ) -> resources_pb2.CatalogueVersion:
        """See the contract."""
        version, replayed = self._service.publish(_publication(request), wire.asked("PublishPrices", request))
        wire.tell_replayed(context, replayed=replayed)
        return wire.version_to_proto(version)

    def ImportPrices(self, request: pb.ImportPricesRequest, context: grpc.ServicerContext) -> pb.ImportPricesResponse:
        """See the contract."""
        identity = current_identity()
        order = order_from_proto(request, author=identity.key_id or identity.subject)
        imported = self._service.import_prices(order)
        wire.tell_replayed(context, replayed=imported.replayed)
        return imported_to_proto(imported)

    def ListCatalogueVersions(
        self, request: pb.ListCatalogueVersionsRequest, _context: grpc.ServicerContext
    ) -> pb.ListCatalogueVersionsResponse:
        """See the contract."""
        v = Violations()
        size = v.page_size("page_size", request.page_size, default=100)
        after = page_position(v, request, int)
        v.raise_if_any()
        found = self._service.versions(before=int(after[0]) if after else None, limit=size + 1)
        page = found[:size]
        token = page_token(request, page[-1].version) if len(found) > size else ""
        return pb.ListCatalogueVersionsResponse(versions=map(wire.version_to_proto, page), next_page_token=token)

    def Reprice(self, request: pb.RepriceRequest, _context: grpc.ServicerContext) -> pb.RepriceResponse:
        """See the contract."""
        v = Violations()
        v.identifier("account_id", request.account_id, required=False)
        v.present("from_time", given=request.HasField("from_time"))
        v.present("to_time", given=request.HasField("to_time"))
        start = moment_of(v, "from_time", request.from_time)
        end = moment_of(v, "to_time", request.to_time)
        v.positive("price_version", request.price_version)
        v.raise_if_any()
        if start >= end or end - start > MAX_PERIOD:
            v.add("to_time", f"must be after from_time, by at most {MAX_PERIOD.days} days")
        v.raise_if_any()
        found = self._repricer.reprice(start, end, request.price_version, request.account_id)
        return wire.repricing_to_proto(found)

    def WatchCatalogue(
        self, _request: pb.WatchCatalogueRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CatalogueChange]:
        """See the contract."""
        return self._watches.watch(context)


def _cost(costing: Costing, request: pb.CalculateCostRequest) -> resources_pb2.Cost:
    v = Violations()
    v.present("usage", given=request.HasField("usage"))
    usage = usage_from_proto(request.usage)
    call = _call(v, request)
    return cost_to_proto(costing.cost_of(call, usage))


def _estimate(costing: Costing, request: pb.EstimateCostRequest) -> pb.CostEstimate:
    v = Violations()
    counts = Counts(
        v.non_negative("max_input_tokens", request.max_input_tokens),
        v.non_negative("max_output_tokens", request.max_output_tokens),
        v.non_negative("images", request.images),
    )
    call = _call(v, request)
    return wire.estimate_to_proto(costing.estimate(call, counts))


def _check_batch(requests: Any) -> None:
    v = Violations()
    v.count("requests", requests, at_least=1, at_most=MAX_BATCH)
    v.raise_if_any()


def _check_model(v: Violations, provider: str, model: str) -> None:
    v.identifier("provider", provider)
    if not (0 < len(model) <= MAX_MODEL_CHARS and model.isprintable() and not model.isspace()):
        # Only to say what is wrong: looking at each character takes a batch as long as all the rest of its checks.
        v.text("model", model, max_length=MAX_MODEL_CHARS, required=True)


def _call(v: Violations, request: Any) -> Call:
    """How a call is priced, as a cost or an estimate asks for it. Raises InvalidArgument naming all that is wrong."""
    v.identifier("account_id", request.account_id, required=False)
    _check_model(v, request.provider, request.model)
    service_tier = v.one_of("service_tier", request.service_tier or STANDARD, SERVICE_TIERS)
    multiplier = request.multiplier_millionths or AT_COST_MILLIONTHS
    v.between("multiplier_millionths", multiplier, 1, MAX_MULTIPLIER_MILLIONTHS)
    at, price_version = None, 0
    if isinstance(request, pb.CalculateCostRequest):
        price_version = v.non_negative("price_version", request.price_version)
        if request.HasField("at"):
            at = moment_of(v, "at", request.at)
    v.raise_if_any()
    return Call(request.provider, request.model, service_tier, multiplier, at, price_version, request.account_id)


def _each(
    answer: Callable[[Costing, Any], _R], costing: Costing, request: Any
) -> tuple[_R | None, status_pb2.Status | None]:
    """One request's answer, or its refusal: one bad line of a batch is no other line's matter."""
    try:
        return answer(costing, request), None
    except ServiceError as error:
        _, _, trailing = wire_form(error)
        return None, status_pb2.Status.FromString(dict(trailing)[DETAILS_KEY])


def _publication(request: pb.PublishPricesRequest) -> Publication:
    v = Violations()
    v.identifier("request_id", request.request_id)
    v.text("reason", request.reason, max_length=wire.MAX_REASON_CHARS)
    v.between("max_move_percent", request.max_move_percent, 0, ANY_MOVE_PERCENT)
    v.count("prices", request.prices, at_least=1, at_most=MAX_BATCH)
    v.raise_if_any()
    first: dict[tuple[str, str], int] = {}
    prices = []
    for number, price in enumerate(request.prices):
        key = (price.provider, price.model)
        if key in first:
            v.add(f"prices[{number}]", f"prices the same model as prices[{first[key]}]")
        first.setdefault(key, number)
        prices.append(_price(v, price, f"prices[{number}]"))
    effective_from = None
    if request.HasField("effective_from"):
        effective_from = moment_of(v, "effective_from", request.effective_from)
    v.raise_if_any()
    return Publication(
        prices=tuple(price for price in prices if price is not None),
        effective_from=effective_from,
        max_move_percent=request.max_move_percent,
    )


def _price(v: Violations, price: resources_pb2.Price, at: str) -> PublishedPrice | None:
    """One price to publish; what is wrong with it is noted, and then it is None."""
    already = len(v.found)
    v.identifier(f"{at}.provider", price.provider)
    v.text(f"{at}.model", price.model, max_length=MAX_MODEL_CHARS, required=True)
    v.text(f"{at}.display_name", price.display_name, max_length=MAX_MODEL_CHARS)
    if price.mode or not price.withdrawn:
        v.one_of(f"{at}.mode", price.mode, MODES)
    v.non_negative(f"{at}.max_input_tokens", price.max_input_tokens)
    v.non_negative(f"{at}.max_output_tokens", price.max_output_tokens)
    card = None
    if price.withdrawn:
        if price.rates:
            v.add(f"{at}.rates", "must be empty where the model is withdrawn")
    else:
        unset = resources_pb2.Price()
        unset.CopyFrom(price)
        unset.ClearField("effective_from")
        try:
            card = card_from_proto(unset)
        except InvalidPriceCard as error:
            for fault in error.faults:
                v.add(f"{at}.{fault.field}", fault.description)
    if len(v.found) > already:
        return None
    name = price.display_name or price.model
    return PublishedPrice(price.provider, price.model, 0, datetime.now(UTC), card, name, price.mode)
