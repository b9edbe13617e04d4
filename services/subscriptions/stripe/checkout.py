"""Owns Stripe's pages: to subscribe, to buy credit, to see and change payment methods and invoices.

Two pages to subscribe at that are both paid would be two subscriptions. So of an account's open ones all but the newest
are closed each time one is opened, whoever opened them; and a page whose account has a subscription by then is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import stripe

from services.kit.logs import get_logger
from services.kit.validation import Violations
from services.subscriptions.errors import PlanNotSubscribable, SubscriptionExists
from services.subscriptions.model.account import Account
from services.subscriptions.model.plan import Plan
from services.subscriptions.stripe import names
from services.subscriptions.stripe.catalogue import intervals, is_subscribable, whole_cents
from services.subscriptions.stripe.client import stripe_errors
from services.subscriptions.stripe.names import PURPOSE_SUBSCRIPTION, PURPOSE_TOP_UP
from services.subscriptions.stripe.parts import StripeParts
from services.subscriptions.stripe.requests import Answered, Once

_log = get_logger(__name__)

_MOST_OPEN = 100


@dataclass(frozen=True, slots=True)
class Page:
    """A page of Stripe's: its id, and where it is."""

    session_id: str
    url: str


@dataclass(frozen=True, slots=True)
class ReturnUrls:
    """Where the browser goes when it is paid, and when it is given up."""

    success: str
    cancel: str


class Checkout:
    """Pages of Stripe's for an account."""

    def __init__(self, parts: StripeParts) -> None:
        self._parts = parts
        self._access = parts.access
        self._subscribe = Once(parts.engine, "checkout", dict[str, Any], Page)
        self._top_up = Once(parts.engine, "topup", dict[str, Any], Page)

    def subscribe(
        self, account_id: str, plan_id: str, interval: str, urls: ReturnUrls, request_id: str
    ) -> Answered[Page]:
        """A page to subscribe at.

        Raises AccountNotFound, AccountStopped, PlanNotFound, PlanRetired, PlanNotSubscribable, SubscriptionExists,
        StripeCatalogueMissing, IdempotencyConflict, what `stripe_errors` says; grpc.RpcError where pricing is away.
        """
        _ = self._access.client
        account = self._parts.paying(account_id)

        def settle() -> dict[str, Any]:
            plan = self._parts.customers.plan_on_sale(plan_id)
            require_subscribable(plan, interval)
            customer_id = self._parts.stripe_customers.ensure(account)
            if self._parts.current.find(customer_id) is not None:
                raise SubscriptionExists(f"account {account_id} has a subscription")
            return cast("dict[str, Any]", self._subscription_page(account_id, customer_id, plan, interval, urls))

        def ask(params: dict[str, Any], key: str) -> Page:
            return self._open_only(cast("stripe.params.checkout.SessionCreateParams", params), key, account_id)

        words = (plan_id, interval, urls.success, urls.cancel)
        return self._subscribe.make(account_id, request_id, words, settle=settle, ask=ask)

    def _subscription_page(
        self, account_id: str, customer_id: str, plan: Plan, interval: str, urls: ReturnUrls
    ) -> stripe.params.checkout.SessionCreateParams:
        own, *metered = self._parts.prices.of_plan(plan, interval)
        about = {
            "account_id": account_id,
            "plan": plan.plan_id,
            "plan_version": str(plan.version),
            "interval": interval,
        }
        return {
            "mode": "subscription",
            "customer": customer_id,
            "client_reference_id": account_id,
            "success_url": urls.success,
            "cancel_url": urls.cancel,
            "line_items": [{"price": own, "quantity": 1}, *_metered(metered)],
            "metadata": {**about, "purpose": PURPOSE_SUBSCRIPTION},
            # Flexible: what is credited at a change is what was really paid for the time, also after a move that
            # was not prorated; and use of a metered item is billed when the item goes.
            "subscription_data": {"metadata": about, "billing_mode": {"type": "flexible"}},
        }

    def top_up(self, account_id: str, amount_nanos: int, urls: ReturnUrls, request_id: str) -> Answered[Page]:
        """A page to buy credit at; the amount is whole cents.

        Raises AccountNotFound, AccountStopped, IdempotencyConflict, what `stripe_errors` says.
        """
        _ = self._access.client
        account = self._parts.paying(account_id)

        def settle() -> dict[str, Any]:
            customer_id = self._parts.stripe_customers.ensure(account)
            return cast("dict[str, Any]", _top_up_page(account, customer_id, amount_nanos, urls, request_id))

        def ask(params: dict[str, Any], key: str) -> Page:
            return _page(self._open(cast("stripe.params.checkout.SessionCreateParams", params), key, account_id))

        words = (amount_nanos, urls.success, urls.cancel)
        return self._top_up.make(account_id, request_id, words, settle=settle, ask=ask)

    def portal(self, account_id: str, return_url: str) -> str:
        """The address of a page to see and change payment methods and invoices at; it lasts a few minutes.

        Raises AccountNotFound, what `stripe_errors` says.
        """
        client = self._access.client
        customer_id = self._parts.stripe_customers.ensure(self._parts.customers.get(account_id))
        with stripe_errors("open the portal", account_id=account_id):
            made = client.v1.billing_portal.sessions.create(params={"customer": customer_id, "return_url": return_url})
        return made.url

    def _open(
        self, params: stripe.params.checkout.SessionCreateParams, key: str, account_id: str
    ) -> stripe.checkout.Session:
        with stripe_errors("open a checkout", account_id=account_id):
            return self._access.client.v1.checkout.sessions.create(params=params, options={"idempotency_key": key})

    def _open_only(self, params: stripe.params.checkout.SessionCreateParams, key: str, account_id: str) -> Page:
        """Open a page to subscribe at, and leave no other one open. Raises SubscriptionExists."""
        made = self._open(params, key, account_id)
        customer_id = params["customer"]
        with stripe_errors("close older checkouts", account_id=account_id):
            # Newest first: those who open pages at the same time agree on which one stays.
            listed = self._access.client.v1.checkout.sessions.list(
                params={"customer": customer_id, "status": "open", "limit": _MOST_OPEN}
            )
            for older in [page for page in listed.data if page.mode == "subscription"][1:]:
                self._close(older.id)
            # After the closing: one of them may have been paid first.
            if self._parts.current.find(customer_id) is not None:
                self._close(made.id)
                raise SubscriptionExists(f"account {account_id} has a subscription")
        return _page(made)

    def _close(self, session_id: str) -> None:
        try:
            self._access.client.v1.checkout.sessions.expire(session_id)
        except stripe.InvalidRequestError:  # it was paid, or closed, just now
            _log.info("a checkout was closed already", session=session_id)


def _metered(prices: list[str]) -> list[stripe.params.checkout.SessionCreateParamsLineItem]:
    return [{"price": price} for price in prices]


def _page(made: stripe.checkout.Session) -> Page:
    return Page(made.id, made.url or "")


def _top_up_page(
    account: Account, customer_id: str, amount_nanos: int, urls: ReturnUrls, request_id: str
) -> stripe.params.checkout.SessionCreateParams:
    about = {"account_id": account.account_id, "purpose": PURPOSE_TOP_UP, "request_id": request_id}
    return {
        "mode": "payment",
        "customer": customer_id,
        "client_reference_id": account.account_id,
        "success_url": urls.success,
        "cancel_url": urls.cancel,
        "line_items": [
            {
                "quantity": 1,
                "price_data": {
                    "currency": names.CURRENCY,
                    "unit_amount": whole_cents(amount_nanos, "the amount"),
                    "product_data": {"name": "Credit"},
                },
            }
        ],
        "metadata": about,
        # Kept for later payments, so that credit can be bought by itself where the customer asks for that.
        "payment_intent_data": {"metadata": about, "setup_future_usage": "off_session"},
    }


def require_subscribable(plan: Plan, interval: str) -> None:
    """Check that a plan is sold by the month or year. Raises PlanNotSubscribable, InvalidArgument."""
    if not is_subscribable(plan):
        raise PlanNotSubscribable(f"no subscription is for plan {plan.plan_id}", plan=plan.plan_id)
    v = Violations()
    v.one_of("interval", interval, intervals(plan))
    v.raise_if_any()
