"""Owns the RPCs of plans: checks each request, asks the service or the arithmetic, makes the answer's message."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import grpc
from tollkeeper.pricing.v1 import plan_service_pb2 as pb
from tollkeeper.pricing.v1 import plan_service_pb2_grpc, resources_pb2

from services.kit.paging import page_position, page_token
from services.kit.times import moment_of
from services.kit.validation import MAX_IDENTIFIER_CHARS, Violations
from services.pricing import economics, wire
from services.pricing.economics import DEFAULT_MARGIN_BASIS_POINTS, CycleUse
from services.pricing.errors import NoPlanOnSale
from services.pricing.margins import MarginReports, Month
from services.pricing.model import ANY, BASIS_POINTS, MAX_INT64, MAX_PRICE_NANOS, METRICS, PLAN_KINDS
from services.pricing.plan_service import PlanService

MAX_TEMPLATES = 100
# Less than a cent cannot be charged, and its margins would be nonsense.
MIN_PRICE_NANOS = 10_000_000


class PlanServicer(plan_service_pb2_grpc.PlanServiceServicer):
    """Plans and what follows from them."""

    def __init__(self, service: PlanService, margins: MarginReports) -> None:
        self._service = service
        self._margins = margins

    def GetPlan(self, request: pb.GetPlanRequest, _context: grpc.ServicerContext) -> resources_pb2.Plan:
        """See the contract."""
        v = Violations()
        v.identifier("plan_id", request.plan_id)
        v.non_negative("version", request.version)
        v.raise_if_any()
        return wire.plan_to_proto(self._service.plan(request.plan_id, request.version))

    def ListPlans(self, request: pb.ListPlansRequest, _context: grpc.ServicerContext) -> pb.ListPlansResponse:
        """See the contract."""
        v = Violations()
        if request.kind:
            v.one_of("kind", request.kind, PLAN_KINDS)
        size = v.page_size("page_size", request.page_size, default=100)
        after = page_position(v, request, str, int, str)
        v.raise_if_any()
        found = self._service.plans(kind=request.kind, include_retired=request.include_retired)
        if after:
            found = [plan for plan in found if (plan.kind, plan.price_nanos, plan.plan_id) > after]
        page = found[:size]
        last = page[-1] if len(found) > size else None
        token = page_token(request, last.kind, last.price_nanos, last.plan_id) if last else ""
        return pb.ListPlansResponse(plans=map(wire.plan_to_proto, page), next_page_token=token)

    def CreatePlan(self, request: pb.CreatePlanRequest, context: grpc.ServicerContext) -> resources_pb2.Plan:
        """See the contract."""
        v = _write_checks(request)
        v.identifier("request_id", request.request_id)
        v.raise_if_any()
        made, replayed = self._service.create(wire.plan_from_proto(request.plan), wire.asked("CreatePlan", request))
        wire.tell_replayed(context, replayed=replayed)
        return wire.plan_to_proto(made)

    def UpdatePlan(self, request: pb.UpdatePlanRequest, context: grpc.ServicerContext) -> resources_pb2.Plan:
        """See the contract."""
        v = _write_checks(request)
        v.identifier("request_id", request.request_id, required=False)
        v.identifier("plan.plan_id", request.plan.plan_id)
        names = _changed_fields(v, request)
        v.raise_if_any()
        plan = wire.plan_from_proto(request.plan)
        made, replayed = self._service.update(plan, names, wire.asked("UpdatePlan", request))
        wire.tell_replayed(context, replayed=replayed)
        return wire.plan_to_proto(made)

    def RetirePlan(self, request: pb.RetirePlanRequest, context: grpc.ServicerContext) -> resources_pb2.Plan:
        """See the contract."""
        v = Violations()
        v.identifier("plan_id", request.plan_id)
        v.identifier("request_id", request.request_id)
        v.text("reason", request.reason, max_length=wire.MAX_REASON_CHARS)
        v.raise_if_any()
        made, replayed = self._service.retire(request.plan_id, wire.asked("RetirePlan", request))
        wire.tell_replayed(context, replayed=replayed)
        return wire.plan_to_proto(made)

    def ListPlanVersions(
        self, request: pb.ListPlanVersionsRequest, _context: grpc.ServicerContext
    ) -> pb.ListPlanVersionsResponse:
        """See the contract."""
        v = Violations()
        v.identifier("plan_id", request.plan_id)
        size = v.page_size("page_size", request.page_size, default=100)
        after = page_position(v, request, int)
        v.raise_if_any()
        found = self._service.versions(request.plan_id, before=int(after[0]) if after else None, limit=size + 1)
        page = found[:size]
        return pb.ListPlanVersionsResponse(
            plans=[wire.plan_to_proto(version.plan) for version in page],
            authorship=[pb.PlanAuthorship(author=version.author, reason=version.reason) for version in page],
            next_page_token=page_token(request, page[-1].plan.version) if len(found) > size else "",
        )

    def GenerateTiers(
        self, request: pb.GenerateTiersRequest, _context: grpc.ServicerContext
    ) -> pb.GenerateTiersResponse:
        """See the contract."""
        v = Violations()
        given = request.HasField("margin_basis_points")
        margin = _margin(v, request.margin_basis_points if given else None)
        v.count("templates", request.templates, at_least=1, at_most=MAX_TEMPLATES)
        v.raise_if_any()
        tiers = [_tier(v, one, margin, f"templates[{number}]") for number, one in enumerate(request.templates)]
        v.raise_if_any()
        return pb.GenerateTiersResponse(tiers=[wire.tier_to_proto(tier) for tier in tiers if tier is not None])

    def QuoteUserPrice(
        self, request: pb.QuoteUserPriceRequest, _context: grpc.ServicerContext
    ) -> pb.QuoteUserPriceResponse:
        """See the contract."""
        v = Violations()
        v.non_negative("cost_nanos", request.cost_nanos)
        given = request.HasField("margin_basis_points")
        margin = _margin(v, request.margin_basis_points if given else None)
        v.raise_if_any()
        price = economics.user_price_nanos(request.cost_nanos, margin)
        if price > MAX_INT64:
            v.add("cost_nanos", "is too large: the price does not fit 64 bits")
        v.raise_if_any()
        return pb.QuoteUserPriceResponse(price_nanos=price)

    def QuoteOverage(self, request: pb.QuoteOverageRequest, _context: grpc.ServicerContext) -> pb.QuoteOverageResponse:
        """See the contract."""
        v = Violations()
        v.identifier("plan_id", request.plan_id)
        v.non_negative("plan_version", request.plan_version)
        for metric, used in sorted(request.used.items()):
            if metric not in METRICS:
                v.add(f"used[{metric[:64]}]", f"must be one of {', '.join(METRICS)}")
            v.non_negative(f"used[{metric[:64]}]", used)
        v.raise_if_any()
        plan = self._service.plan(request.plan_id, request.plan_version)
        lines = economics.overage(plan, request.used)
        if sum(line.cost_nanos for line in lines) > MAX_INT64:
            v.add("used", "is too much: its cost does not fit 64 bits")
        v.raise_if_any()
        return wire.overage_to_proto(lines)

    def RecommendPlan(
        self, request: pb.RecommendPlanRequest, _context: grpc.ServicerContext
    ) -> pb.RecommendPlanResponse:
        """See the contract."""
        v = Violations()
        v.identifier("plan_id", request.plan_id, required=False)
        use = CycleUse(
            v.non_negative("spend_nanos", request.spend_nanos),
            v.non_negative("tokens", request.tokens),
            v.non_negative("requests", request.requests),
        )
        v.present("cycle_start", given=request.HasField("cycle_start"))
        v.present("cycle_end", given=request.HasField("cycle_end"))
        start = moment_of(v, "cycle_start", request.cycle_start)
        end = moment_of(v, "cycle_end", request.cycle_end)
        at = moment_of(v, "at", request.at) if request.HasField("at") else datetime.now(UTC)
        v.raise_if_any()
        if end <= start:
            v.add("cycle_end", "must be after cycle_start")
        v.raise_if_any()
        projection = economics.projected(use, start, end, at)
        for name in ("spend_nanos", "tokens", "requests"):
            if getattr(projection, name) > MAX_INT64:
                v.add(name, "is too large: its projection does not fit 64 bits")
        v.raise_if_any()
        current = self._service.plan(request.plan_id) if request.plan_id else None
        found = economics.recommended(self._service.plans(), current, projection)
        if found is None:
            raise NoPlanOnSale("no plan that could be recommended is on sale")
        plan, covers = found
        return pb.RecommendPlanResponse(
            projected_spend_nanos=projection.spend_nanos,
            projected_tokens=projection.tokens,
            projected_requests=projection.requests,
            plan=wire.plan_to_proto(plan),
            covers=covers,
        )

    def GetMarginReport(self, request: pb.GetMarginReportRequest, _context: grpc.ServicerContext) -> pb.MarginReport:
        """See the contract."""
        v = Violations()
        start, end = v.month("month", request.month)
        v.raise_if_any()
        lines, total = self._margins.of_month(Month(start, end))
        return wire.margin_report_to_proto(f"{start:%Y-%m}", lines, total)


def _write_checks(request: pb.CreatePlanRequest | pb.UpdatePlanRequest) -> Violations:
    v = Violations()
    v.present("plan", given=request.HasField("plan"))
    v.text("reason", request.reason, max_length=wire.MAX_REASON_CHARS)
    return v


def _changed_fields(v: Violations, request: pb.UpdatePlanRequest) -> list[str]:
    """The fields of the plan that are to change: those the mask names, or those that are set where it names none."""
    paths = list(request.update_mask.paths)
    if not paths:
        paths = [field.name for field, _ in request.plan.ListFields() if field.name in wire.CHANGEABLE_PLAN_FIELDS]
    elif paths == [ANY]:
        paths = sorted(wire.CHANGEABLE_PLAN_FIELDS)
    names = list(dict.fromkeys(path for path in paths if path != "plan_id"))
    if not names:
        # Most often a 0 or an empty list alone, which is nothing that is set.
        v.add("update_mask.paths", "must name what is to become 0 or empty, since the plan sets nothing")
    v.count("update_mask.paths", names, at_most=len(wire.CHANGEABLE_PLAN_FIELDS))
    for name in names:
        if name not in wire.CHANGEABLE_PLAN_FIELDS:
            v.add("update_mask.paths", f"{name[:MAX_IDENTIFIER_CHARS]} cannot be changed")
    return names


def _margin(v: Violations, basis_points: int | None) -> int:
    if basis_points is None:
        return DEFAULT_MARGIN_BASIS_POINTS
    v.between("margin_basis_points", basis_points, 0, BASIS_POINTS - 1)
    return min(max(basis_points, 0), BASIS_POINTS - 1)


def _tier(v: Violations, template: pb.TierTemplate, margin: int, at: str) -> economics.Tier | None:
    """A template worked out from its price or its budget; without either it is a free tier. Else None, and noted."""
    v.identifier(f"{at}.plan_id", template.plan_id, required=False)
    if template.price_nanos and template.api_budget_nanos:
        v.add(at, "give price_nanos or api_budget_nanos, not both")
        return None
    work_out: Callable[[str, int, int], economics.Tier] = economics.tier
    field, amount = "price_nanos", template.price_nanos
    if template.api_budget_nanos:
        work_out, field, amount = economics.tier_of_budget, "api_budget_nanos", template.api_budget_nanos
    if not 0 <= amount <= MAX_PRICE_NANOS:
        v.add(f"{at}.{field}", f"must be from 0 to {MAX_PRICE_NANOS}")
        return None
    tier = work_out(template.plan_id, amount, margin)
    if tier.price_nanos and not MIN_PRICE_NANOS <= tier.price_nanos <= MAX_PRICE_NANOS:
        v.add(f"{at}.{field}", f"must make a price of 0, or from {MIN_PRICE_NANOS} to {MAX_PRICE_NANOS} nanos")
        return None
    return tier
