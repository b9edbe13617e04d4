"""Owns auto-recharge: the rule of an account, and the job that buys credit by it.

A purchase is committed before Stripe is asked, and asked for under its own idempotency key however often it is tried.
What is paid becomes credit as any other payment does: when Stripe tells of it or, where it does not, is asked after a
while. A declined card turns the rule off.
"""

from __future__ import annotations

from datetime import timedelta

import stripe
from sqlalchemy import Connection

from services.kit.amounts import format_usd
from services.kit.call import new_request_id
from services.kit.logs import get_logger
from services.subscriptions import store
from services.subscriptions.alerts.model import payment_failed_alert
from services.subscriptions.alerts.store import raise_alert
from services.subscriptions.errors import AccountNotProvisioned, PaymentMethodMissing, SubscriptionsError
from services.subscriptions.stripe import mirror_store, names, recharge_store
from services.subscriptions.stripe.application import Application
from services.subscriptions.stripe.client import is_remembered, is_retryable, refusal, stripe_errors
from services.subscriptions.stripe.events import PAYMENT_INTENT, Reference
from services.subscriptions.stripe.parts import StripeParts
from services.subscriptions.stripe.recharge_rules import (
    Decision,
    Recharge,
    RechargeRule,
    decide,
    is_renewing,
    lifts,
    month_start,
)

_log = get_logger(__name__)

# Stripe keeps idempotency keys for a day: later a repeat might pay twice.
_RETRIED_FOR = timedelta(hours=20)
# How long a payment may take to be told of before it is asked for.
_TOLD_WITHIN = timedelta(minutes=10)

# After so long a fault that Stripe gives in answer to each repeat is no reason to wait: what it did can be seen by now.
_DOUBTFUL_FOR = timedelta(hours=1)
_MOST_LOOKED_AT = 100

_UNDER_WAY = frozenset({"succeeded", "processing"})


class AutoRecharges:
    """Rules, and what they buy."""

    def __init__(self, parts: StripeParts, application: Application, *, pause_seconds: float) -> None:
        self._parts = parts
        self._application = application
        self._ledger = parts.ledger
        self._pause_seconds = pause_seconds

    def set(self, rule: RechargeRule) -> RechargeRule:
        """Set an account's rule. Raises AccountNotFound, AccountStopped, PaymentMethodMissing, as `stripe_errors`."""
        account = self._parts.paying(rule.account_id)
        if rule.enabled:
            _ = self._parts.access.client
            customer_id = self._parts.stripe_customers.find(account.account_id)
            if customer_id is None or self._payment_method(customer_id) is None:
                raise PaymentMethodMissing(f"account {account.account_id} has no payment method")
        with self._parts.engine.begin() as connection:
            recharge_store.set_rule(connection, rule)
        return rule

    def get(self, account_id: str) -> RechargeRule:
        """An account's rule; one that is off where none was set. Raises AccountNotFound."""
        self._parts.customers.get(account_id)
        with self._parts.engine.connect() as connection:
            known = recharge_store.find_rule(connection, account_id)
        return known or RechargeRule(account_id, False, 0, 0, 0, True)

    def look_next(self) -> bool:
        """The job: look after the rule longest due; False where none is due."""
        with self._parts.engine.begin() as connection:
            rule = recharge_store.claim_due(connection, pause_seconds=self._pause_seconds)
        if rule is None:
            return False
        try:
            self._look(rule)
        except AccountNotProvisioned:
            _log.info("no balance to look at yet", account_id=rule.account_id)
        except SubscriptionsError as error:
            _log.warning("auto-recharge has to wait", account_id=rule.account_id, reason=error.reason)
        return True

    def _look(self, rule: RechargeRule) -> None:
        with self._parts.engine.connect() as connection:
            under_way = recharge_store.find_open(connection, rule.account_id)
            month = month_start(self._parts.clock())
            bought = recharge_store.bought_since(connection, rule.account_id, month)
            credit_comes = self._credit_comes(connection, rule.account_id)
        if under_way is not None:
            self._go_on(under_way)
            return
        if credit_comes:
            return
        available = self._ledger.balance(rule.account_id).available_nanos
        match decide(rule, available, bought):
            case Decision.ARM:
                with self._parts.engine.begin() as connection:
                    if self._is_still_so(connection, rule, bought):
                        recharge_store.update_rule(connection, rule.account_id, armed=True)
            case Decision.BUY if not self._ledger.is_open(rule.account_id):
                self._leave(rule)
            case Decision.BUY:
                self._buy(rule, available, bought)
            case Decision.CAPPED:
                _log.info("auto-recharge has reached its cap", account_id=rule.account_id)
            case Decision.NOTHING:
                pass

    def _leave(self, rule: RechargeRule) -> None:
        """Buy nothing for an account that may not use it; where it is closed for good, never again."""
        with self._parts.engine.begin() as connection:
            account = store.find_account(connection, rule.account_id)
            is_over = account is not None and account.status == "closed"
            if is_over:
                recharge_store.lock_rule(connection, rule.account_id)
                recharge_store.update_rule(connection, rule.account_id, enabled=False, armed=True)
        _log.info("no credit is bought for an account that may not use it", account_id=rule.account_id, off=is_over)

    def _buy(self, seen: RechargeRule, available_nanos: int, bought_nanos: int) -> None:
        customer_id = self._parts.stripe_customers.find(seen.account_id)
        method = self._payment_method(customer_id) if customer_id is not None else None
        recharge = Recharge(
            account_id=seen.account_id,
            request_id=new_request_id(),
            amount_nanos=seen.amount_nanos,
            status="pending",
            lifts=lifts(seen, available_nanos),
            customer_id=customer_id or "",
            payment_method_id=method or "",
            payment_intent_id="",
            created_at=self._parts.clock(),
        )
        with self._parts.engine.begin() as connection:
            if not self._is_still_so(connection, seen, bought_nanos):
                return
            recharge_store.update_rule(connection, seen.account_id, armed=False)
            recharge_store.insert_recharge(connection, recharge)
        self._charge(recharge)

    def _is_still_so(self, connection: Connection, seen: RechargeRule, bought_nanos: int) -> bool:
        """Whether nothing has changed since the balance was looked at; the rule stays locked until the end.

        Where the rule was changed, or somebody else was quicker, be it that the credit has arrived since, what was seen
        of the balance is of the past.
        """
        account_id, month = seen.account_id, month_start(self._parts.clock())
        return (
            recharge_store.lock_rule(connection, account_id) == seen
            and not self._credit_comes(connection, account_id)
            and recharge_store.find_open(connection, account_id) is None
            and recharge_store.bought_since(connection, account_id, month) == bought_nanos
        )

    def _credit_comes(self, connection: Connection, account_id: str) -> bool:
        """Whether a renewal's credit is on its way, or something that was committed has still to reach the ledger."""
        account = store.find_account(connection, account_id)
        mirror = mirror_store.find_mirror(connection, account_id)
        return is_renewing(mirror, self._parts.clock()) or (account is not None and not account.provisioned)

    def _go_on(self, recharge: Recharge) -> None:
        """Take a purchase that was begun before a step further."""
        age = self._parts.clock() - recharge.created_at
        if recharge.status == "pending":
            if age > _RETRIED_FOR:
                self._fail(recharge, "Stripe could not be reached for too long")
            else:
                self._charge(recharge)
            return
        with self._parts.engine.begin() as connection:
            if recharge_store.has_arrived(connection, recharge.payment_intent_id):
                recharge_store.lock_rule(connection, recharge.account_id)
                payment = mirror_store.find_payment(connection, recharge.payment_intent_id)
                is_returned = payment is not None and bool(payment.returned)
                done = recharge_store.update_recharge(connection, recharge, status="granted")
                if done and recharge.lifts and not is_returned:
                    recharge_store.update_rule(connection, recharge.account_id, armed=True)
                return
        if age > _TOLD_WITHIN:
            self._ask_after(recharge)

    def _charge(self, recharge: Recharge) -> None:
        """Have it paid. Raises StripeUnavailable, StripeKeyInvalid, StripeNotConfigured: to be tried again."""
        client = self._parts.access.client
        if not recharge.payment_method_id:
            self._fail(recharge, "there is no payment method")
            return
        about = {
            "account_id": recharge.account_id,
            "purpose": names.PURPOSE_RECHARGE,
            "request_id": recharge.request_id,
        }
        params: stripe.params.PaymentIntentCreateParams = {
            "amount": recharge.amount_nanos // names.NANOS_PER_CENT,
            "currency": names.CURRENCY,
            "customer": recharge.customer_id,
            "payment_method": recharge.payment_method_id,
            "off_session": True,
            "confirm": True,
            "description": "Credit, bought by auto-recharge",
            "metadata": about,
        }
        key = names.idempotency_key(recharge.account_id, names.PURPOSE_RECHARGE, recharge.request_id)
        try:
            made = client.v1.payment_intents.create(params=params, options={"idempotency_key": key})
        except stripe.StripeError as error:
            refused = refusal(error, "buy credit", account_id=recharge.account_id)
            if is_remembered(error) and self._parts.clock() - recharge.created_at >= _DOUBTFUL_FOR:
                self._settle_doubt(recharge)
                return
            if is_retryable(error) or isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
                raise refused from error
            self._fail(recharge, refused.message)
            return
        self._paid(recharge, made)

    def _settle_doubt(self, recharge: Recharge) -> None:
        """Look for the payment that a fault of Stripe's may have left; without one, let the next look buy anew."""
        since = int((recharge.created_at - _DOUBTFUL_FOR).timestamp())
        with stripe_errors("look for a payment", account_id=recharge.account_id):
            listed = self._parts.access.client.v1.payment_intents.list(
                params={"customer": recharge.customer_id, "created": {"gte": since}, "limit": _MOST_LOOKED_AT}
            )
        for made in listed.data:
            if made.metadata.to_dict().get("request_id") == recharge.request_id:
                self._paid(recharge, made)
                return
        if listed.has_more:
            return  # it may be among those that were not read: nothing is certain
        with self._parts.engine.begin() as connection:
            recharge_store.lock_rule(connection, recharge.account_id)
            if recharge_store.update_recharge(connection, recharge, status="failed", error="a fault of Stripe's"):
                recharge_store.update_rule(connection, recharge.account_id, armed=True)

    def _paid(self, recharge: Recharge, made: stripe.PaymentIntent) -> None:
        if made.status not in _UNDER_WAY:
            self._fail(recharge, f"the payment ended as {made.status}")
            return
        with self._parts.engine.begin() as connection:
            recharge_store.update_recharge(connection, recharge, status="paid", payment_intent_id=made.id)
        _log.info("credit was bought", account_id=recharge.account_id, payment_intent=made.id)

    def _ask_after(self, recharge: Recharge) -> None:
        """Ask after a payment of which Stripe has told nothing for long: it may have failed, or nothing is told."""
        client = self._parts.access.client
        with stripe_errors("look at a payment", account_id=recharge.account_id):
            made = client.v1.payment_intents.retrieve(recharge.payment_intent_id)
        if made.status not in _UNDER_WAY:
            self._fail(recharge, f"the payment ended as {made.status}")
        elif made.status == "succeeded":
            paid = [Reference(PAYMENT_INTENT, made.id)]
            self._application.refresh_quietly(recharge.account_id, self._parts.clock(), paid)

    def _fail(self, recharge: Recharge, why: str) -> None:
        """Note that a purchase failed, turn the rule off, and raise the alert."""
        message = (
            f"Auto-recharge of ${format_usd(recharge.amount_nanos)} failed: {why}. It is off until it is set again."
        )
        with self._parts.engine.begin() as connection:
            recharge_store.lock_rule(connection, recharge.account_id)
            if not recharge_store.update_recharge(connection, recharge, status="failed", error=why[:500]):
                return
            recharge_store.update_rule(connection, recharge.account_id, enabled=False, armed=True)
            raise_alert(connection, payment_failed_alert(recharge.account_id, recharge.request_id, message))
        _log.warning("auto-recharge failed and is off", account_id=recharge.account_id, why=why)

    def _payment_method(self, customer_id: str) -> str | None:
        """The customer's default payment method: its own, its subscription's, else the newest card."""
        client = self._parts.access.client
        with stripe_errors("read the payment methods", customer=customer_id):
            customer = client.v1.customers.retrieve(customer_id)
            if getattr(customer, "deleted", False):  # nothing further can be asked about it
                return None
            settings = customer.invoice_settings if "invoice_settings" in customer else None
            if settings is not None and settings.default_payment_method:
                return _id(settings.default_payment_method)
            subscription = self._parts.current.find(customer_id)
            if subscription is not None and subscription.default_payment_method:
                return _id(subscription.default_payment_method)
            cards = client.v1.payment_methods.list(params={"customer": customer_id, "type": "card", "limit": 1})
        return cards.data[0].id if cards.data else None


def _id(method: str | stripe.PaymentMethod) -> str:
    return method if isinstance(method, str) else method.id
