"""Owns CreditsService on the wire."""

from __future__ import annotations

from typing import Any

from tollkeeper.subscriptions.v1 import credits_service_pb2 as pb
from tollkeeper.subscriptions.v1 import resources_pb2 as resources
from tollkeeper.subscriptions.v1.credits_service_pb2_grpc import CreditsServiceServicer

from services.kit.call import current_identity
from services.kit.validation import Violations
from services.subscriptions.errors import AccountNotFound, PlanNotFound, TierNotFound
from services.subscriptions.service.billing import Billing
from services.subscriptions.service.customers import Customers
from services.subscriptions.servicer.messages import credits_balance, credits_usage, overage, recommendation, tier
from services.subscriptions.servicer.requests import account_named, return_urls
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.stripe.names import INTERVALS
from services.subscriptions.stripe.use_cases import StripeUseCases


class CreditsServicer(CreditsServiceServicer):
    """Credits and tiers."""

    def __init__(
        self, customers: Customers, billing: Billing, stripe: StripeUseCases, settings: SubscriptionsSettings
    ) -> None:
        self._customers = customers
        self._billing = billing
        self._stripe = stripe
        self._settings = settings

    def GetCreditsBalance(self, request: pb.GetCreditsBalanceRequest, context: Any) -> pb.CreditsBalance:
        """See the contract."""
        return credits_balance(self._billing.credits(account_named(request)))

    def GetCreditsUsage(self, request: pb.GetCreditsUsageRequest, context: Any) -> pb.CreditsUsage:
        """See the contract."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        start, end = v.month("month", request.month)
        v.raise_if_any()
        return credits_usage(self._billing.month_use(account_id, start, end))

    def ListTiers(self, request: pb.ListTiersRequest, context: Any) -> pb.ListTiersResponse:
        """See the contract. Open to all; a customer sees which tier is its own."""
        current = self._callers_plan()
        plans = self._billing.tiers()
        return pb.ListTiersResponse(tiers=[tier(plan, current=plan.plan_id == current) for plan in plans])

    def GetTier(self, request: pb.GetTierRequest, context: Any) -> resources.Tier:
        """See the contract."""
        v = Violations()
        name = v.identifier("tier", request.tier)
        v.raise_if_any()
        plan = self._billing.tier(name)
        return tier(plan, current=plan.plan_id == self._callers_plan())

    def GetCurrentTier(self, request: pb.GetCurrentTierRequest, context: Any) -> resources.Tier:
        """See the contract."""
        return tier(self._billing.plan_of(self._customers.get(account_named(request))), current=True)

    def GetOverage(self, request: pb.GetOverageRequest, context: Any) -> pb.Overage:
        """See the contract."""
        return overage(self._billing.overage(account_named(request)))

    def GetRecommendation(self, request: pb.GetRecommendationRequest, context: Any) -> pb.Recommendation:
        """See the contract."""
        return recommendation(self._billing.recommendation(account_named(request)))

    def UpgradeTier(self, request: pb.UpgradeTierRequest, context: Any) -> pb.UpgradeTierResponse:
        """See the contract. Who has a subscription is upgraded at once, and sent to the invoice of that."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        plan_id = v.identifier("tier", request.tier)
        interval = v.one_of("interval", request.interval, INTERVALS) if request.interval else ""
        urls = return_urls(v, request, self._settings.return_url)
        v.raise_if_any()
        try:
            url = self._stripe.upgrade(account_id, plan_id, interval, urls)
        except PlanNotFound as error:
            raise TierNotFound(f"there is no tier {plan_id!r}", tier=plan_id) from error
        return pb.UpgradeTierResponse(checkout_url=url)

    def _callers_plan(self) -> str:
        """The plan of the customer who calls; empty for anyone else."""
        account_id = current_identity().account_id
        try:
            return self._customers.get(account_id).plan_id if account_id else ""
        except AccountNotFound:
            return ""
