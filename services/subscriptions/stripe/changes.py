"""Owns changes of a subscription: moves between plans with their preview, its end, and taking that back.

A move that is paid at once is made as of the second for which it was shown (`proration`), and with
`error_if_incomplete`: where the payment fails, Stripe changes nothing, and so nothing is granted that is not paid.

A move to a cheaper plan changes the price without proration; what is metered follows when the next period has begun
(`metered_items`), since until then it is used under the dearer plan. What says that the dearer plan is kept until then
is in the subscription's metadata, beside the plan that follows: so Stripe alone knows where an account stands.

Moves of one account are made one after the other, each from where the one before it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import stripe

from services.subscriptions.errors import StripeUnavailable, SubscriptionNotFound, SubscriptionUnmovable
from services.subscriptions.model.account import Account
from services.subscriptions.model.plan import METERED
from services.subscriptions.stripe import events_store, names
from services.subscriptions.stripe.catalogue import is_subscribable
from services.subscriptions.stripe.checkout import require_subscribable
from services.subscriptions.stripe.client import stripe_errors
from services.subscriptions.stripe.current import (
    SubscriptionView,
    metered_items,
    own_item,
    subscription_view,
)
from services.subscriptions.stripe.ends import end_said, ends_with_period
from services.subscriptions.stripe.invoices import preview
from services.subscriptions.stripe.metered_items import Item, exchanged, require_reported, use_of_period
from services.subscriptions.stripe.moves import Move, Position, is_above, move
from services.subscriptions.stripe.parts import StripeParts
from services.subscriptions.stripe.proration import Prorations, Standing, Target, begins_period
from services.subscriptions.stripe.requests import Answered, Once

# Longer than a move takes while Stripe is well; who dies in the middle of one holds up the next for no longer.
_LEASE_SECONDS = 60.0
_WAIT_SECONDS = 5.0
_RECHECK_SECONDS = 0.05

# Statuses in which nothing is owed, so that a move can be paid.
_MOVABLE = frozenset({"active", "trialing"})


@dataclass(frozen=True, slots=True)
class Wish:
    """What a subscription is wanted to be; empty: as it is."""

    plan_id: str = ""
    interval: str = ""
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What Stripe is asked: `call` is `update`, `resume`, `cancel` or `none`, with these parameters.

    A move between plans is meant for the period that began at `period_start` (seconds), and away from the price
    `from_price`; 0 and empty: for any.
    """

    subscription_id: str
    call: str
    params: dict[str, Any]
    period_start: int = 0
    from_price: str = ""


class PlanChanges:
    """Changes of accounts' subscriptions."""

    def __init__(self, parts: StripeParts) -> None:
        self._parts = parts
        self._access = parts.access
        self._clock = parts.clock
        self._proration = Prorations(parts)
        self._update = Once(parts.engine, "subscription", Settled, SubscriptionView)
        self._cancel = Once(parts.engine, "cancellation", Settled, SubscriptionView)

    def update(self, account_id: str, wish: Wish, request_id: str) -> Answered[SubscriptionView]:
        """Move a subscription, or take its end back; waits for another move of the account.

        Raises AccountNotFound, AccountStopped, SubscriptionNotFound, SubscriptionUnmovable, PlanNotFound, PlanRetired,
        PlanNotSubscribable, InvalidArgument, StripeCatalogueMissing, PaymentFailed, IdempotencyConflict and what
        `stripe_errors` says; grpc.RpcError where pricing does not answer.
        """
        with self._one_at_a_time(account_id):
            return self._update.make(
                account_id,
                request_id,
                (wish.plan_id, wish.interval, wish.resume),
                settle=lambda: self._settle_update(account_id, wish),
                ask=lambda settled, key: self._carry_out(account_id, settled, key),
            )

    def cancel(self, account_id: str, *, now: bool, request_id: str) -> Answered[SubscriptionView]:
        """End a subscription, now or with the period that is paid for; a closed account's too. Raises as `update`."""

        def settle() -> Settled:
            subscription = self._subscription(self._parts.customers.get(account_id))
            if not now:
                ends = ends_with_period(subscription, own_item(subscription).current_period_end)
                return Settled(subscription.id, *(("none", {}) if ends else ("update", {"cancel_at_period_end": True})))
            # What was used and is not billed yet is billed with the end; what was paid in advance is not given back.
            is_metered = bool(metered_items(subscription))
            if is_metered:
                require_reported(self._parts.engine, account_id)
            return Settled(subscription.id, "cancel", {"invoice_now": is_metered})

        return self._cancel.make(
            account_id,
            request_id,
            (now,),
            settle=settle,
            ask=lambda settled, key: self._carry_out(account_id, settled, key),
        )

    def preview(self, account_id: str, wish: Wish) -> stripe.Invoice:
        """The invoice that a move would bring: now, or where nothing is due now with the next period.

        Without a subscription: a new one's first. Raises as `update`; stripe.StripeError's refusals as ours.
        """
        account = self._parts.paying(account_id)
        customer_id = self._parts.stripe_customers.ensure(account)
        subscription = self._parts.current.find(customer_id)
        if subscription is None:
            return self._preview_new(customer_id, wish)
        standing = self._standing_of(account_id, subscription)
        target = self._target(standing.position, wish)
        params: stripe.params.InvoiceCreatePreviewParams = {"customer": customer_id, "subscription": subscription.id}
        if not is_subscribable(target.plan):
            params["subscription_details"] = {"cancel_at_period_end": True}
            return preview(self._access, params, account_id)
        how = _how(standing, target)
        if how is not Move.NONE:
            items = self._items(standing, target, how)
            params["subscription_details"] = {
                "items": [_previewed(item) for item in items],
                "proration_behavior": "none",
            }
            if how is Move.AT_ONCE:
                at = self._proration.show(standing, target)
                params["subscription_details"]["proration_behavior"] = "always_invoice"
                params["subscription_details"]["proration_date"] = at
                if begins_period(standing, target, at):
                    params["subscription_details"]["billing_cycle_anchor"] = {"type": "now"}
        return preview(self._access, params, account_id)

    def is_upgrade(self, account_id: str, plan_id: str, interval: str) -> bool | None:
        """Whether a move would be made at once; None where there is no subscription to move. Raises as `update`."""
        try:
            standing = self._standing(account_id)
        except SubscriptionNotFound:
            return None
        target = self._target(standing.position, Wish(plan_id, interval))
        how = move(standing.position, target.plan, target.interval)
        return is_subscribable(target.plan) and how is not Move.AT_PERIOD_END

    def latest_invoice_url(self, subscription_id: str) -> str:
        """Where the newest invoice of a subscription can be seen, and paid if it is not. Raises as `stripe_errors`."""
        client = self._access.client
        with stripe_errors("read the invoice", subscription=subscription_id):
            found = client.v1.subscriptions.retrieve(subscription_id, params={"expand": ["latest_invoice"]})
        invoice = found.latest_invoice
        return (invoice.hosted_invoice_url or "") if isinstance(invoice, stripe.Invoice) else ""

    @contextmanager
    def _one_at_a_time(self, account_id: str) -> Iterator[None]:
        """Move nothing else of the account meanwhile. Raises StripeUnavailable: the same may be asked again."""
        ends = time.monotonic() + _WAIT_SECONDS
        while True:
            with self._parts.engine.begin() as connection:
                lease = events_store.lease_moves(connection, account_id, lease_seconds=_LEASE_SECONDS)
            if lease is not None:
                break
            if time.monotonic() >= ends:
                raise StripeUnavailable("another move is being made", retry_after_seconds=_WAIT_SECONDS)
            time.sleep(_RECHECK_SECONDS)
        try:
            yield
        finally:
            with self._parts.engine.begin() as connection:
                events_store.end_lease(connection, lease)

    # Settling what Stripe is asked

    def _standing(self, account_id: str) -> Standing:
        return self._standing_of(account_id, self._subscription(self._parts.paying(account_id)))

    def _subscription(self, account: Account) -> stripe.Subscription:
        _ = self._access.client
        customer_id = self._parts.stripe_customers.find(account.account_id)
        subscription = self._parts.current.find(customer_id) if customer_id is not None else None
        if subscription is None:
            raise SubscriptionNotFound(f"account {account.account_id} has no subscription")
        return subscription

    def _standing_of(self, account_id: str, subscription: stripe.Subscription) -> Standing:
        position = self._parts.current.position(subscription, self._clock())
        if position.enjoyed.kind != METERED:
            return Standing(account_id, subscription, position)
        used = use_of_period(self._parts.engine, account_id, own_item(subscription))
        return Standing(account_id, subscription, position, used)

    def _settle_update(self, account_id: str, wish: Wish) -> Settled:
        standing = self._standing(account_id)
        subscription = standing.subscription
        target = self._target(standing.position, wish)
        if wish.resume and subscription.status == "paused":
            _how(standing, target)
            return Settled(subscription.id, "resume", {"billing_cycle_anchor": {"type": "now"}})
        params: stripe.params.SubscriptionUpdateParams = {}
        if not is_subscribable(target.plan):
            if wish.resume:
                raise SubscriptionUnmovable(f"plan {target.plan.plan_id} has no price: there is nothing to resume")
            params["cancel_at_period_end"] = True
        else:
            how = _how(standing, target)
            if how is not Move.NONE:
                params = self._moving(standing, target, how)
            period_end = own_item(subscription).current_period_end
            params |= end_said(subscription, period_end, is_taken_back=wish.resume, is_paid=how is Move.AT_ONCE)
        call, own = "update" if params else "none", own_item(subscription)
        meant_for = (own.current_period_start, own.price.id) if "items" in params else ()
        return Settled(subscription.id, call, cast("dict[str, Any]", params), *meant_for)

    def _target(self, position: Position, wish: Wish) -> Target:
        """The plan and interval that are wished for: where nothing is said of them, or what it has, as they are."""
        interval = wish.interval or position.interval
        if interval == position.interval:
            plans = [plan for plan in (position.plan, position.kept) if plan is not None]
            same = [plan for plan in plans if plan.plan_id == (wish.plan_id or position.plan.plan_id)]
            if same:
                return Target(same[0], interval)
        wanted = self._parts.customers.plan_on_sale(wish.plan_id or position.plan.plan_id)
        if wanted.kind == "prepaid" or is_subscribable(wanted):
            require_subscribable(wanted, interval)
        return Target(wanted, interval)

    def _moving(self, standing: Standing, target: Target, how: Move) -> stripe.params.SubscriptionUpdateParams:
        params: stripe.params.SubscriptionUpdateParams = {
            "items": self._items(standing, target, how),
            "metadata": _metadata(standing, target, how),
            "proration_behavior": "none",
        }
        if how is Move.AT_ONCE:
            if target.plan.kind != METERED and is_above(standing.position.enjoyed, standing.used):
                require_reported(self._parts.engine, standing.account_id)
            at = self._proration.second(standing, target)
            params["proration_behavior"] = "always_invoice"
            params["payment_behavior"] = "error_if_incomplete"
            params["proration_date"] = at
            if begins_period(standing, target, at):
                params["billing_cycle_anchor"] = {"type": "now"}
        return params

    def _items(self, standing: Standing, target: Target, how: Move) -> list[Item]:
        """The plan's own item takes the new price; at once, what is metered goes with the old plan and comes anew."""
        own, *metered = self._parts.prices.of_plan(target.plan, target.interval)
        items: list[Item] = [{"id": own_item(standing.subscription).id, "price": own}]
        if how is not Move.AT_PERIOD_END:
            items += exchanged(metered_items(standing.subscription), metered)
        return items

    # Asking Stripe

    def _carry_out(self, account_id: str, settled: Settled, key: str) -> SubscriptionView:
        subscriptions = self._access.client.v1.subscriptions
        with stripe_errors("change a subscription", account_id=account_id, subscription=settled.subscription_id):
            if settled.call == "update":
                self._check_is_meant(settled)
                changed = subscriptions.update(
                    settled.subscription_id,
                    params=cast("stripe.params.SubscriptionUpdateParams", settled.params),
                    options={"idempotency_key": key},
                )
            elif settled.call == "cancel":
                changed = self._cancelled(settled)
            elif settled.call == "resume":
                changed = subscriptions.resume(
                    settled.subscription_id,
                    params=cast("stripe.params.SubscriptionResumeParams", settled.params),
                    options={"idempotency_key": key},
                )
            else:
                changed = subscriptions.retrieve(settled.subscription_id)
        return subscription_view(account_id, changed, self._parts.current.position(changed, self._clock()))

    def _cancelled(self, settled: Settled) -> stripe.Subscription:
        """End a subscription now. Stripe takes no idempotency keys here: a repeat finds what it has ended itself."""
        subscriptions = self._access.client.v1.subscriptions
        params = cast("stripe.params.SubscriptionCancelParams", settled.params)
        try:
            return subscriptions.cancel(settled.subscription_id, params=params)
        except stripe.InvalidRequestError:
            found = subscriptions.retrieve(settled.subscription_id)
            if found.status != "canceled":
                raise
            return found

    def _check_is_meant(self, settled: Settled) -> None:
        """Check that a move is made from where it is meant to be made: it may be repeated hours later.

        In another period, or after another move, it would take back what was asked for since. One that has taken effect
        may have begun a period itself; repeated, Stripe answers as it did then.
        """
        if not settled.period_start:
            return
        found = own_item(self._access.client.v1.subscriptions.retrieve(settled.subscription_id))
        if found.price.id == settled.params["items"][0]["price"]:
            return
        if found.current_period_start != settled.period_start:
            raise SubscriptionUnmovable("the next period has begun meanwhile: ask again with a new request id")
        if settled.from_price and found.price.id != settled.from_price:
            raise SubscriptionUnmovable("the subscription was moved meanwhile: ask again with a new request id")

    def _preview_new(self, customer_id: str, wish: Wish) -> stripe.Invoice:
        interval = wish.interval or names.MONTH
        plan = self._parts.customers.plan_on_sale(wish.plan_id)
        require_subscribable(plan, interval)
        own, *metered = self._parts.prices.of_plan(plan, interval)
        return preview(
            self._access,
            {
                "customer": customer_id,
                "subscription_details": {"items": [{"price": own, "quantity": 1}, *_metered(metered)]},
            },
            customer_id,
        )


def _how(standing: Standing, target: Target) -> Move:
    how = move(standing.position, target.plan, target.interval)
    if how is Move.NONE:
        return how
    if standing.subscription.status == "paused":
        raise SubscriptionUnmovable("the subscription is paused: resume it first, then move it")
    if standing.subscription.status not in _MOVABLE:
        raise SubscriptionUnmovable("the last invoice is not paid: pay it at the portal first")
    return how


def _metadata(standing: Standing, target: Target, how: Move) -> dict[str, str]:
    """What the subscription says of itself after a move; an empty value takes a name away."""
    said = {
        "account_id": standing.account_id,
        "plan": target.plan.plan_id,
        "plan_version": str(target.plan.version),
        "interval": target.interval,
        names.KEEPS_PLAN: "",
        names.KEEPS_PLAN_VERSION: "",
        names.KEEPS_UNTIL: "",
    }
    if how is Move.AT_PERIOD_END:
        said[names.KEEPS_PLAN] = standing.position.enjoyed.plan_id
        said[names.KEEPS_PLAN_VERSION] = str(standing.position.enjoyed.version)
        said[names.KEEPS_UNTIL] = str(own_item(standing.subscription).current_period_end)
    return said


def _previewed(item: Item) -> stripe.params.InvoiceCreatePreviewParamsSubscriptionDetailsItem:
    """What a change says of an item, said to a preview."""
    said: stripe.params.InvoiceCreatePreviewParamsSubscriptionDetailsItem = {}
    if "id" in item:
        said["id"] = item["id"]
    if "price" in item:
        said["price"] = item["price"]
    if "deleted" in item:
        said["deleted"] = item["deleted"]
    return said


def _metered(prices: list[str]) -> list[stripe.params.InvoiceCreatePreviewParamsSubscriptionDetailsItem]:
    return [{"price": price} for price in prices]
