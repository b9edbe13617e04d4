"""Owns BillingService on the wire. RPCs that need Stripe, or sums of usage, are not built yet."""

from __future__ import annotations

from typing import Any

from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1 import resources_pb2 as resources
from tollkeeper.subscriptions.v1.billing_service_pb2_grpc import BillingServiceServicer

from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.service.billing import Billing
from services.subscriptions.service.customers import Customers
from services.subscriptions.servicer.messages import billing_account
from services.subscriptions.servicer.requests import account_named


class BillingServicer(BillingServiceServicer):
    """An account's billing."""

    def __init__(self, customers: Customers, billing: Billing, *, clock: Clock = utc_now) -> None:
        self._customers = customers
        self._billing = billing
        self._clock = clock

    def GetBillingAccount(self, request: pb.GetBillingAccountRequest, context: Any) -> pb.BillingAccount:
        """See the contract."""
        return billing_account(self._billing.billing_account(account_named(request)), self._clock())

    def GetSubscription(self, request: pb.GetSubscriptionRequest, context: Any) -> resources.Subscription:
        """See the contract. Nobody subscribes yet, so the status is always `none`."""
        account = self._customers.get(account_named(request))
        return resources.Subscription(account_id=account.account_id, plan=account.plan_id, status="none")
