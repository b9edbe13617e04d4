"""Owns the passage between pricing's values and their messages; rates, cards and costs are services.rating.wire's."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

import grpc
from tollkeeper.pricing.v1 import plan_service_pb2, pricing_service_pb2, resources_pb2

from services.kit import replays
from services.kit.call import current_identity
from services.kit.times import timestamp
from services.pricing.costing import Estimate
from services.pricing.economics import OverageLine, Tier
from services.pricing.errors import CostTooLarge
from services.pricing.margins import MarginLine
from services.pricing.model import MAX_INT64, CatalogueVersion, Plan, PlanMetric, PublishedPrice
from services.pricing.overrides import Override
from services.pricing.repricing import Repricing
from services.pricing.writing import Asked
from services.rating.wire import card_to_proto, rate_to_proto

MAX_REASON_CHARS = 500

_PLAN_FIELDS = tuple(field.name for field in fields(Plan) if field.name not in {"metrics", "created_at"})

# `kind` is among them so that it may be named as it is; a change of it is refused by the service.
CHANGEABLE_PLAN_FIELDS = frozenset((*_PLAN_FIELDS, "metrics")) - {"plan_id", "version"}


def asked(operation: str, request: Any) -> Asked:
    """A write as its request asks for it, in the name of the caller."""
    identity = current_identity()
    return Asked(
        operation=operation,
        request_id=request.request_id,
        body_sha256=hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
        author=identity.key_id or identity.subject,
        reason=request.reason,
    )


def tell_replayed(context: grpc.ServicerContext, *, replayed: bool) -> None:
    """Say in the answer's metadata that it is the first answer to a repeated request, where it is."""
    if replayed:
        replays.tell_replayed(context)


def override_to_proto(override: Override) -> resources_pb2.PriceOverride:
    """An account's own price; its end as all that is known says."""
    until = override.effective_until
    return resources_pb2.PriceOverride(
        account_id=override.account_id,
        provider=override.provider,
        model=override.model,
        rates=map(rate_to_proto, override.rates),
        multiplier_millionths=override.multiplier_millionths,
        version=override.version,
        effective_from=timestamp(override.effective_from),
        effective_until=timestamp(until),
    )


def price_to_proto(price: PublishedPrice) -> resources_pb2.Price:
    """A published price; a withdrawal has no rates."""
    if price.card is not None:
        return card_to_proto(price.card, display_name=price.display_name)
    return resources_pb2.Price(
        provider=price.provider,
        model=price.model,
        mode=price.mode,
        version=price.version,
        effective_from=timestamp(price.effective_from),
        withdrawn=True,
        display_name=price.display_name,
    )


def version_to_proto(version: CatalogueVersion) -> resources_pb2.CatalogueVersion:
    """A publication."""
    return resources_pb2.CatalogueVersion(
        version=version.version,
        effective_from=timestamp(version.effective_from),
        created_at=timestamp(version.created_at),
        author=version.author,
        reason=version.reason,
        prices_changed=version.prices_changed,
        account_id=version.account_id,
    )


def estimate_to_proto(estimate: Estimate) -> pricing_service_pb2.CostEstimate:
    """What a call can cost."""
    return pricing_service_pb2.CostEstimate(
        max_cost_nanos=estimate.most.cost_nanos,
        max_billed_nanos=estimate.most.billed_nanos,
        expected_cost_nanos=estimate.expected.cost_nanos,
        price_version=estimate.most.price_version,
    )


def plan_to_proto(plan: Plan) -> resources_pb2.Plan:
    """A plan."""
    made = resources_pb2.Plan(
        **{name: getattr(plan, name) for name in _PLAN_FIELDS},
        credit_nanos=plan.credit_nanos,
        metrics=[
            resources_pb2.PlanMetric(
                metric=metric.metric,
                included=metric.included,
                overage_nanos_per_million=metric.overage_nanos_per_million,
                cap=metric.cap,
            )
            for metric in plan.metrics
        ],
    )
    if plan.created_at is not None:
        made.created_at.FromDatetime(plan.created_at)
    return made


def plan_from_proto(plan: resources_pb2.Plan) -> Plan:
    """A plan as somebody asks for it, unchecked; what is worked out, and its version, are left out."""
    values = {name: getattr(plan, name) for name in _PLAN_FIELDS if name != "version"}
    return Plan(
        **values
        | {
            "providers": tuple(plan.providers),
            "models": tuple(plan.models),
            "metrics": tuple(
                PlanMetric(metric.metric, metric.included, metric.cap, metric.overage_nanos_per_million)
                for metric in plan.metrics
            ),
        }
    )


def tier_to_proto(tier: Tier) -> plan_service_pb2.TierEconomics:
    """A tier, worked out."""
    return plan_service_pb2.TierEconomics(**{field.name: getattr(tier, field.name) for field in fields(Tier)})


def margin_report_to_proto(month: str, lines: list[MarginLine], total: MarginLine) -> plan_service_pb2.MarginReport:
    """A month's margins. Raises CostTooLarge where a sum does not fit 64 bits."""
    return plan_service_pb2.MarginReport(month=month, plans=map(_margin_to_proto, lines), total=_margin_to_proto(total))


def _margin_to_proto(line: MarginLine) -> plan_service_pb2.MarginLine:
    amounts = {
        "revenue_nanos": line.revenue_nanos,
        "api_cost_nanos": line.api_cost_nanos,
        "stripe_fee_nanos": line.stripe_fee_nanos,
        "profit_nanos": line.profit_nanos,
    }
    if max(map(abs, amounts.values())) > MAX_INT64:
        raise CostTooLarge("a sum of the month does not fit 64 bits")
    return plan_service_pb2.MarginLine(
        plan_id=line.plan_id, **amounts, margin_basis_points=line.margin_basis_points, customers=line.customers
    )


def repricing_to_proto(found: Repricing) -> pricing_service_pb2.RepriceResponse:
    """A period, re-priced. Raises CostTooLarge where a sum does not fit 64 bits."""
    return pricing_service_pb2.RepriceResponse(
        cost_nanos=found.total("cost_nanos"),
        repriced_cost_nanos=found.total("repriced_cost_nanos"),
        models=[
            pricing_service_pb2.RepricedModel(
                provider=model.provider,
                model=model.model,
                requests=model.requests,
                cost_nanos=model.cost_nanos,
                repriced_cost_nanos=model.repriced_cost_nanos,
                unpriced_requests=model.unpriced_requests,
            )
            for model in found.models
        ],
        unpriced_requests=found.total("unpriced_requests"),
        unpriced_cost_nanos=found.total("unpriced_cost_nanos"),
    )


def overage_to_proto(lines: list[OverageLine]) -> plan_service_pb2.QuoteOverageResponse:
    """An overage; the total is the sum of its lines, as an invoice's is."""
    return plan_service_pb2.QuoteOverageResponse(
        lines=[
            plan_service_pb2.OverageLine(**{field.name: getattr(line, field.name) for field in fields(OverageLine)})
            for line in lines
        ],
        total_nanos=sum(line.cost_nanos for line in lines),
    )
