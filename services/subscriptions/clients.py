"""Owns the other services as subscriptions sees them: pricing's plans, the ledger, the proxy. Plans are cached here.

Methods raise grpc.RpcError where a peer refuses or does not answer, except where their docstrings say more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources
from tollkeeper.ledger.v1.ledger_service_pb2_grpc import AccountServiceStub, JournalServiceStub, LedgerServiceStub
from tollkeeper.pricing.v1 import plan_service_pb2 as plan_pb
from tollkeeper.pricing.v1 import resources_pb2 as pricing_pb
from tollkeeper.pricing.v1.plan_service_pb2_grpc import PlanServiceStub
from tollkeeper.proxy.v1 import entitlement_service_pb2 as entitlement_pb
from tollkeeper.proxy.v1 import resources_pb2 as proxy_pb
from tollkeeper.proxy.v1.entitlement_service_pb2_grpc import EntitlementServiceStub

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.kit.times import timestamp
from services.subscriptions.alerts.model import CountedLimit
from services.subscriptions.errors import AccountNotProvisioned, PlanNotFound
from services.subscriptions.model.credits import LedgerBalance, LimitUse, OverageQuote, PlanAdvice, UsageSums
from services.subscriptions.model.delivery import (
    GrantCredit,
    MoveCycle,
    OpenLedgerAccount,
    ReverseGrant,
    SetEntitlement,
    SetPlanLimits,
)
from services.subscriptions.model.plan import TOKENS_METRIC, Plan, PlanMetric, limit_id

_log = get_logger(__name__)

_PAGE_SIZE = 1000
_MAX_PLANS = 10_000
_MAX_CACHED_VERSIONS = 1000

_K = TypeVar("_K")
_V = TypeVar("_V")

# Pricing refuses an id that cannot be a plan's as an invalid argument: to whoever named it, no such plan.
_NO_SUCH_PLAN = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}


def _moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


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
            _keep(self._newest, plan_id, (asked, plan))
            _keep(self._versions, (plan.plan_id, plan.version), plan)
        return plan

    def version(self, plan_id: str, version: int) -> Plan:
        """A plan in one version. Raises PlanNotFound."""
        known = self._versions.get((plan_id, version))
        if known is not None:
            return known
        plan = self._pricing.plan(plan_id, version)
        with self._lock:
            _keep(self._versions, (plan_id, version), plan)
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


def _keep(cache: dict[_K, _V], key: _K, value: _V) -> None:
    """Remember at the end of a bounded cache; the oldest entry makes room."""
    cache.pop(key, None)
    while len(cache) >= _MAX_CACHED_VERSIONS:
        del cache[next(iter(cache))]
    cache[key] = value


class LedgerClient:
    """The ledger: what is delivered to it, and what is read from it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._accounts = AccountServiceStub(channel)
        self._ledger = LedgerServiceStub(channel)
        self._journal = JournalServiceStub(channel)

    def open_account(self, opening: OpenLedgerAccount, *, timeout_seconds: float) -> None:
        """Open an account's book; opening it again changes nothing.

        One that is open under other words is taken over, with these: it is of an account that was made here, and lost
        with what a restore has undone.
        """
        request = ledger_pb.OpenAccountRequest(
            account_id=opening.account_id,
            display_name=opening.display_name,
            cycle_anchor=timestamp(opening.cycle_anchor),
        )
        try:
            self._accounts.OpenAccount(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            if RemoteError.from_rpc(error).code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            _log.warning("the ledger has a book of a new account, which is kept", account_id=opening.account_id)
            self._take_over(opening, timeout_seconds)

    def _take_over(self, opening: OpenLedgerAccount, timeout_seconds: float) -> None:
        account = ledger_resources.Account(
            account_id=opening.account_id,
            display_name=opening.display_name,
            cycle_anchor=timestamp(opening.cycle_anchor),
        )
        request = ledger_pb.UpdateAccountRequest(
            account=account,
            update_mask=FieldMask(paths=["display_name", "cycle_anchor"]),
            request_id=f"open:{opening.cycle_anchor:%Y%m%dT%H%M%S.%f}",
        )
        self._apply([ledger_pb.Operation(update_account=request)], timeout_seconds)

    def set_plan_limits(self, change: SetPlanLimits, *, timeout_seconds: float) -> None:
        """Set and end a plan's limits. Raises RemoteError where the ledger refuses one of them."""
        operations = [
            ledger_pb.Operation(
                set_limit=ledger_pb.SetLimitRequest(
                    account_id=change.account_id,
                    scope="plan",
                    unit=limit.unit,
                    window="cycle",
                    amount=limit.amount,
                    mode=limit.mode,
                    warn_percent=limit.warn_percent,
                    request_id=f"plan-limit:{change.revision}:{limit.unit}",
                )
            )
            for limit in change.limits
        ]
        operations += [
            ledger_pb.Operation(
                delete_limit=ledger_pb.DeleteLimitRequest(account_id=change.account_id, limit_id=limit_id(unit))
            )
            for unit in change.ended_units
        ]
        self._apply(operations, timeout_seconds)

    def move_cycle(self, move: MoveCycle, *, timeout_seconds: float) -> None:
        """Count cycles from another moment. Raises RemoteError where the ledger refuses it."""
        account = ledger_resources.Account(account_id=move.account_id, cycle_anchor=timestamp(move.cycle_anchor))
        request = ledger_pb.UpdateAccountRequest(
            account=account,
            update_mask=FieldMask(paths=["cycle_anchor"]),
            request_id=f"cycle:{move.revision}",
        )
        self._apply([ledger_pb.Operation(update_account=request)], timeout_seconds)

    def grant(self, grant: GrantCredit, *, timeout_seconds: float) -> str:
        """Give credit, once per request id; the transaction. Raises RemoteError where the ledger refuses it."""
        request = ledger_pb.CreditAccountRequest(
            account_id=grant.account_id,
            amount_nanos=grant.amount_nanos,
            source=grant.source,
            description=grant.description,
            request_id=grant.request_id,
            expires_at=timestamp(grant.expires_at),
            rollover_cap_nanos=grant.rollover_cap_nanos,
        )
        return self._apply([ledger_pb.Operation(credit=request)], timeout_seconds)[0].transaction.transaction_id

    def reverse(self, reversal: ReverseGrant, transaction_id: str, *, timeout_seconds: float) -> None:
        """Take credit back, once per request id. Raises RemoteError where the ledger refuses it."""
        request = ledger_pb.ReverseTransactionRequest(
            account_id=reversal.account_id,
            transaction_id=transaction_id,
            amount_nanos=reversal.amount_nanos,
            description=reversal.description,
            request_id=reversal.request_id,
        )
        self._apply([ledger_pb.Operation(reverse=request)], timeout_seconds)

    def _apply(
        self, operations: list[ledger_pb.Operation], timeout_seconds: float
    ) -> Sequence[ledger_pb.OperationResult]:
        if not operations:
            return []
        answer = self._ledger.Apply(ledger_pb.ApplyRequest(operations=operations), timeout=timeout_seconds)
        assert len(answer.results) == len(operations)
        for result in answer.results:
            if result.WhichOneof("kind") == "error":
                raise RemoteError.from_status(result.error)
        return answer.results

    def balance(self, account_id: str) -> LedgerBalance:
        """What an account has now. Raises AccountNotProvisioned where the ledger does not know it yet."""
        try:
            balance = self._accounts.GetBalance(ledger_pb.GetBalanceRequest(account_id=account_id))
        except grpc.RpcError as error:
            if RemoteError.from_rpc(error).code is grpc.StatusCode.NOT_FOUND:
                raise AccountNotProvisioned("the account is still being set up", retry_after_seconds=5) from error
            raise
        return LedgerBalance(
            available_nanos=balance.available_nanos,
            held_nanos=balance.held_nanos,
            spent_nanos=balance.spent_nanos,
            cycle_spent_nanos=balance.cycle_spent_nanos,
            cycle_start=_moment(balance.cycle_start),
            cycle_end=_moment(balance.cycle_end),
        )

    def limits(self, account_id: str, scope: str) -> list[LimitUse]:
        """An account's limits of one scope."""
        answer = self._ledger.ListLimits(ledger_pb.ListLimitsRequest(account_id=account_id, scope=scope))
        return [LimitUse(x.scope, x.unit, x.window, x.amount, x.used) for x in answer.limits]

    def counted_limits(self, account_id: str) -> list[CountedLimit]:
        """All limits of an account, with what of each is used in its present window."""
        answer = self._ledger.ListLimits(ledger_pb.ListLimitsRequest(account_id=account_id))
        return [
            CountedLimit(
                limit_id=x.limit_id,
                scope=x.scope,
                subject=x.subject,
                unit=x.unit,
                window=x.window,
                amount=x.amount,
                used=x.used,
                resets_at=_moment(x.resets_at) if x.HasField("resets_at") else None,
            )
            for x in answer.limits
        ]

    def usage_by_day(self, account_id: str, start: datetime) -> dict[str, UsageSums] | None:
        """Sums of usage since `start` by UTC day ("2026-11-21"); None where this ledger does not sum usage."""
        request = ledger_pb.SummarizeUsageRequest(account_id=account_id, group_by=["day"], from_time=timestamp(start))
        try:
            answer = self._journal.SummarizeUsage(request)
        except grpc.RpcError as error:
            if RemoteError.from_rpc(error).code is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise
        return {x.day: UsageSums(x.requests, x.total_tokens, x.billed_nanos) for x in answer.summaries}

    def usage_by_provider(self, account_id: str, start: datetime, end: datetime) -> dict[str, UsageSums]:
        """Sums of usage in `[start, end)` by provider. Raises AccountNotProvisioned."""
        request = ledger_pb.SummarizeUsageRequest(
            account_id=account_id, group_by=["provider"], from_time=timestamp(start), to_time=timestamp(end)
        )
        try:
            answer = self._journal.SummarizeUsage(request)
        except grpc.RpcError as error:
            if RemoteError.from_rpc(error).code is grpc.StatusCode.NOT_FOUND:
                raise AccountNotProvisioned("the account is still being set up", retry_after_seconds=5) from error
            raise
        return {x.provider: UsageSums(x.requests, x.total_tokens, x.billed_nanos) for x in answer.summaries}


class ProxyClient:
    """The proxy: what each account may call."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._entitlements = EntitlementServiceStub(channel)

    def set_entitlement(self, entitlement: SetEntitlement, *, timeout_seconds: float) -> None:
        """Tell the proxy; a revision it has seen, or an older one, changes nothing."""
        message = proxy_pb.Entitlement(
            account_id=entitlement.account_id,
            plan_id=entitlement.plan_id,
            revision=entitlement.revision,
            active=entitlement.active,
            providers=entitlement.providers,
            models=entitlement.models,
            max_tokens_per_request=entitlement.max_tokens_per_request,
            requests_per_minute=entitlement.requests_per_minute,
            tokens_per_minute=entitlement.tokens_per_minute,
            multiplier_millionths=entitlement.multiplier_millionths,
            metered=entitlement.metered,
        )
        self._entitlements.SetEntitlement(
            entitlement_pb.SetEntitlementRequest(entitlement=message), timeout=timeout_seconds
        )


@dataclass(frozen=True, slots=True)
class Peers:
    """The services that deliveries go to."""

    ledger: LedgerClient
    proxy: ProxyClient
