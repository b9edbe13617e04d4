"""Owns BillingService on the wire."""

from __future__ import annotations

from typing import Any

from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1 import resources_pb2 as resources
from tollkeeper.subscriptions.v1.billing_service_pb2_grpc import BillingServiceServicer

from services.kit.amounts import format_usd, request_amount
from services.kit.paging import page_position, page_token
from services.kit.replays import tell_replayed
from services.kit.validation import Violations
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.reports.messages import billing_stats
from services.subscriptions.reports.service import Reports
from services.subscriptions.service.billing import Billing
from services.subscriptions.service.customers import Customers
from services.subscriptions.servicer import stripe_messages
from services.subscriptions.servicer.messages import billing_account
from services.subscriptions.servicer.requests import account_named, return_urls
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.stripe.changes import Wish
from services.subscriptions.stripe.checkout import Page
from services.subscriptions.stripe.current import SubscriptionView
from services.subscriptions.stripe.invoices import with_lines
from services.subscriptions.stripe.names import INTERVALS, MONTH, NANOS_PER_CENT
from services.subscriptions.stripe.recharge_rules import RechargeRule
from services.subscriptions.stripe.requests import Answered
from services.subscriptions.stripe.urls import return_url
from services.subscriptions.stripe.use_cases import StripeUseCases

_DEFAULT_INVOICES, _MOST_INVOICES = 20, 100


class BillingServicer(BillingServiceServicer):
    """An account's billing."""

    def __init__(
        self,
        customers: Customers,
        billing: Billing,
        stripe: StripeUseCases,
        reports: Reports,
        settings: SubscriptionsSettings,
        *,
        clock: Clock = utc_now,
    ) -> None:
        self._customers = customers
        self._billing = billing
        self._stripe = stripe
        self._reports = reports
        self._settings = settings
        self._clock = clock

    def GetBillingAccount(self, request: pb.GetBillingAccountRequest, context: Any) -> pb.BillingAccount:
        """See the contract."""
        return billing_account(self._billing.billing_account(account_named(request)), self._clock())

    def GetBillingStats(self, request: pb.GetBillingStatsRequest, context: Any) -> pb.BillingStats:
        """See the contract."""
        return billing_stats(self._reports.account_use(account_named(request)))

    def GetSubscription(self, request: pb.GetSubscriptionRequest, context: Any) -> resources.Subscription:
        """See the contract. As Stripe last told of it: no call of Stripe's, and none needed."""
        account = self._customers.get(account_named(request))
        kept = self._stripe.kept_subscription(account.account_id)
        if kept is None:
            return resources.Subscription(account_id=account.account_id, plan=account.plan_id, status="none")
        return stripe_messages.subscription(kept)

    def UpdateSubscription(self, request: pb.UpdateSubscriptionRequest, context: Any) -> resources.Subscription:
        """See the contract."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        wish = Wish(
            plan_id=v.identifier("plan", request.plan, required=False),
            interval=v.one_of("interval", request.interval, INTERVALS) if request.interval else "",
            resume=request.resume,
        )
        if not (request.plan or request.interval or request.resume):
            v.add("plan", "give plan, interval or resume")
        request_id = v.identifier("request_id", request.request_id, required=False)
        v.raise_if_any()
        return _subscription(self._stripe.update(account_id, wish, request_id), context)

    def CancelSubscription(self, request: pb.CancelSubscriptionRequest, context: Any) -> resources.Subscription:
        """See the contract."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        request_id = v.identifier("request_id", request.request_id, required=False)
        v.raise_if_any()
        return _subscription(self._stripe.cancel(account_id, now=request.now, request_id=request_id), context)

    def PreviewSubscription(self, request: pb.PreviewSubscriptionRequest, context: Any) -> resources.Invoice:
        """See the contract."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        plan_id = v.identifier("plan", request.plan)
        interval = v.one_of("interval", request.interval, INTERVALS) if request.interval else ""
        v.raise_if_any()
        return stripe_messages.invoice(with_lines(self._stripe.changes.preview(account_id, Wish(plan_id, interval))))

    def CreateCheckout(self, request: pb.CreateCheckoutRequest, context: Any) -> pb.CreateCheckoutResponse:
        """See the contract."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        plan_id = v.identifier("plan", request.plan)
        interval = v.one_of("interval", request.interval or MONTH, INTERVALS)
        urls = return_urls(v, request, self._settings.return_url)
        request_id = v.identifier("request_id", request.request_id, required=False)
        v.raise_if_any()
        page = _page(self._stripe.checkout.subscribe(account_id, plan_id, interval, urls, request_id), context)
        return pb.CreateCheckoutResponse(checkout_url=page.url, session_id=page.session_id)

    def CreatePortalSession(
        self, request: pb.CreatePortalSessionRequest, context: Any
    ) -> pb.CreatePortalSessionResponse:
        """See the contract."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        url = return_url(v, "return_url", request.return_url, self._settings.return_url)
        v.raise_if_any()
        return pb.CreatePortalSessionResponse(portal_url=self._stripe.checkout.portal(account_id, url))

    def CreateTopUp(self, request: pb.CreateTopUpRequest, context: Any) -> pb.CreateTopUpResponse:
        """See the contract."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        given = request.amount_nanos if request.HasField("amount_nanos") else None
        amount_nanos = request_amount(v, given, request.amount_usd)
        self._check_amount(v, "amount_usd" if request.amount_usd else "amount_nanos", amount_nanos)
        urls = return_urls(v, request, self._settings.return_url)
        request_id = v.identifier("request_id", request.request_id, required=False)
        v.raise_if_any()
        page = _page(self._stripe.checkout.top_up(account_id, amount_nanos, urls, request_id), context)
        return pb.CreateTopUpResponse(checkout_url=page.url, session_id=page.session_id)

    def SetAutoRecharge(self, request: pb.SetAutoRechargeRequest, context: Any) -> pb.AutoRecharge:
        """See the contract."""
        v = Violations()
        wanted = request.auto_recharge
        v.present("auto_recharge", given=request.HasField("auto_recharge"))
        rule = RechargeRule(
            account_id=v.identifier("account_id", request.account_id),
            enabled=wanted.enabled,
            threshold_nanos=v.non_negative("auto_recharge.threshold_nanos", wanted.threshold_nanos),
            amount_nanos=v.non_negative("auto_recharge.amount_nanos", wanted.amount_nanos),
            monthly_cap_nanos=v.non_negative("auto_recharge.monthly_cap_nanos", wanted.monthly_cap_nanos),
            armed=True,
        )
        if wanted.enabled:
            v.positive("auto_recharge.threshold_nanos", wanted.threshold_nanos)
            if v.positive("auto_recharge.amount_nanos", wanted.amount_nanos) > 0:
                self._check_amount(v, "auto_recharge.amount_nanos", wanted.amount_nanos)
            if 0 < wanted.monthly_cap_nanos < wanted.amount_nanos:
                v.add("auto_recharge.monthly_cap_nanos", "must be 0 (no cap), or at least amount_nanos")
        v.raise_if_any()
        return stripe_messages.auto_recharge(self._stripe.recharges.set(rule))

    def GetAutoRecharge(self, request: pb.GetAutoRechargeRequest, context: Any) -> pb.AutoRecharge:
        """See the contract."""
        return stripe_messages.auto_recharge(self._stripe.recharges.get(account_named(request)))

    def ListInvoices(self, request: pb.ListInvoicesRequest, context: Any) -> pb.ListInvoicesResponse:
        """See the contract."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        size = v.page_size("page_size", request.page_size, default=_DEFAULT_INVOICES, most=_MOST_INVOICES)
        position = page_position(v, request, str)
        v.raise_if_any()
        after = str(position[0]) if position else ""
        page = self._stripe.invoices.list(account_id, page_size=size, after=after)
        return pb.ListInvoicesResponse(
            invoices=[stripe_messages.invoice(found) for found in page.invoices],
            next_page_token=page_token(request, page.next_after) if page.next_after else "",
        )

    def GetUpcomingInvoice(self, request: pb.GetUpcomingInvoiceRequest, context: Any) -> resources.Invoice:
        """See the contract."""
        return stripe_messages.invoice(self._stripe.invoices.upcoming(account_named(request)))

    def _check_amount(self, v: Violations, field: str, amount_nanos: int) -> None:
        """Whole cents, within what may be bought at once; 0 has been complained of already."""
        least, most = self._settings.top_up_min_nanos, self._settings.top_up_max_nanos
        if amount_nanos % NANOS_PER_CENT:
            v.add(field, "must be whole cents")
        elif amount_nanos and not least <= amount_nanos <= most:
            v.add(field, f"must be from ${format_usd(least)} to ${format_usd(most)}")


def _subscription(answered: Answered[SubscriptionView], context: Any) -> resources.Subscription:
    if answered.replayed:
        tell_replayed(context)
    return stripe_messages.subscription(answered.answer)


def _page(answered: Answered[Page], context: Any) -> Page:
    if answered.replayed:
        tell_replayed(context)
    return answered.answer
