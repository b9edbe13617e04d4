"""Owns pricing as subscriptions sees it: its plans, cached, and what it works out from them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
from tollkeeper.pricing.v1 import plan_service_pb2 as plan_pb
from tollkeeper.pricing.v1 import resources_pb2 as pricing_pb
from tollkeeper.pricing.v1.plan_service_pb2_grpc import PlanServiceStub

from services.kit.bounded import keep
from services.kit.errors import RemoteError
from services.kit.times import timestamp
from services.subscriptions.errors import PlanNotFound
from services.subscriptions.model.credits import LedgerBalance, OverageQuote, PlanAdvice
from services.subscriptions.model.plan import TOKENS_METRIC, Plan, PlanMetric

_PAGE_SIZE = 1000
_MAX_PLANS = 10_000
_MAX_CACHED_VERSIONS = 1000

# Pricing refuses an id that cannot be a plan's as an invalid argument: to whoever named it, no such plan.
_NO_SUCH_PLAN = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}


def _plan(plan: pricing_pb.Plan) -> Plan:
    return Plan(
        plan_id=plan.plan_id,
        version=plan.version,
        display_name=plan.display_name,
        kind=plan.kind,
        price_nanos=plan.price_nanos,
        annual_discount_basis_points=plan.annual_discount_basis_points,
        promotional_grant_nanos=plan.promotional_grant_nanos,
        credit_nanos=plan.credit_nanos,
        tokens_per_cycle=plan.tokens_per_cycle,
        requests_per_cycle=plan.requests_per_cycle,
        max_tokens_per_request=plan.max_tokens_per_request,
        requests_per_minute=plan.requests_per_minute,
        tokens_per_minute=plan.tokens_per_minute,
        providers=tuple(plan.providers),
        models=tuple(plan.models),
        multiplier_millionths=plan.multiplier_millionths,
        overage_nanos_per_million_tokens=plan.overage_nanos_per_million_tokens,
        metrics=tuple(PlanMetric(m.metric, m.included, m.overage_nanos_per_million, m.cap) for m in plan.metrics),
        rollover_cap_nanos=plan.rollover_cap_nanos,
        warn_percent=plan.warn_percent,
        retired=plan.retired,
        grace_days=plan.grace_days,
    )


class PricingClient:
    """Pricing's plans, uncached, and what it works out from them."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._plans = PlanServiceStub(channel)

    def plan(self, plan_id: str, version: int = 0) -> Plan:
        """A plan in a version, 0 for the newest. Raises PlanNotFound."""
        try:
            return _plan(self._plans.GetPlan(plan_pb.GetPlanRequest(plan_id=plan_id, version=version)))
        except grpc.RpcError as error:
            if RemoteError.from_rpc(error).code in _NO_SUCH_PLAN:
                raise PlanNotFound(f"there is no plan {plan_id!r}", plan=plan_id) from error
            raise

    def plans_on_sale(self) -> tuple[Plan, ...]:
        """All plans on sale in their newest version, cheapest first."""
        found: list[Plan] = []
        token = ""
        while len(found) < _MAX_PLANS:
            page = self._plans.ListPlans(plan_pb.ListPlansRequest(page_size=_PAGE_SIZE, page_token=token))
            found.extend(_plan(plan) for plan in page.plans if not plan.retired)
            token = page.next_page_token
            if not token:
                break
        return tuple(sorted(found, key=lambda plan: (plan.price_nanos, plan.plan_id)))

    def quote_token_overage(self, plan: Plan, tokens: int) -> OverageQuote:
        """What so many tokens in a cycle cost above the plan's allowance."""
        request = plan_pb.QuoteOverageRequest(plan_id=plan.plan_id, plan_version=plan.version)
        request.used[TOKENS_METRIC] = tokens
        lines = [line for line in self._plans.QuoteOverage(request).lines if line.metric == TOKENS_METRIC]
        return OverageQuote(sum(line.overage for line in lines), sum(line.cost_nanos for line in lines))

    def recommend(
        self, plan: Plan, balance: LedgerBalance, *, cost_nanos: int, tokens: int, requests: int
    ) -> PlanAdvice:
        """The cheapest plan that covers the cycle as projected from provider cost and use so far."""
        answer = self._plans.RecommendPlan(
            plan_pb.RecommendPlanRequest(
                plan_id=plan.plan_id,
                spend_nanos=cost_nanos,
                tokens=tokens,
                requests=requests,
                cycle_start=timestamp(balance.cycle_start),
                cycle_end=timestamp(balance.cycle_end),
            )
        )
        return PlanAdvice(_plan(answer.plan), answer.projected_spend_nanos, answer.covers)


class PlanCatalogue:
    """Plans by id and version, cached: a version for good (it is immutable), what is newest for `fresh_seconds`.

    Safe to share between threads; two that miss at once both ask. What failed is not remembered.
    """

    def __init__(
        self, pricing: PricingClient, *, fresh_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pricing = pricing
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._versions: dict[tuple[str, int], Plan] = {}
        self._newest: dict[str, tuple[float, Plan]] = {}
        self._on_sale: tuple[float, tuple[Plan, ...]] | None = None

    def newest(self, plan_id: str) -> Plan:
        """A plan in its newest version, at most `fresh_seconds` old. Raises PlanNotFound."""
        known = self._newest.get(plan_id)
        if known is not None and self._clock() - known[0] < self._fresh_seconds:
            return known[1]
        asked = self._clock()
        plan = self._pricing.plan(plan_id)
        with self._lock:
            keep(self._newest, plan_id, (asked, plan), at_most=_MAX_CACHED_VERSIONS)
            keep(self._versions, (plan.plan_id, plan.version), plan, at_most=_MAX_CACHED_VERSIONS)
        return plan

    def version(self, plan_id: str, version: int) -> Plan:
        """A plan in one version. Raises PlanNotFound."""
        known = self._versions.get((plan_id, version))
        if known is not None:
            return known
        plan = self._pricing.plan(plan_id, version)
        with self._lock:
            keep(self._versions, (plan_id, version), plan, at_most=_MAX_CACHED_VERSIONS)
        return plan

    def on_sale(self) -> tuple[Plan, ...]:
        """All plans on sale, cheapest first, at most `fresh_seconds` old."""
        known = self._on_sale
        if known is not None and self._clock() - known[0] < self._fresh_seconds:
            return known[1]
        asked = self._clock()
        plans = self._pricing.plans_on_sale()
        self._on_sale = (asked, plans)
        return plans
