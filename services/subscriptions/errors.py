# ruff: noqa: N818 (a refusal is named for what is wrong; that it is an error is said by its base)
"""Owns the refusals of subscriptions.

SubscriptionsError (domain "tollkeeper.subscriptions")
├── AccountExists           ACCOUNT_EXISTS            created before, with other words
├── AccountNotFound         ACCOUNT_NOT_FOUND         no such customer
├── AccountNotProvisioned   ACCOUNT_NOT_PROVISIONED   the ledger has not opened its book yet
├── AccountStopped          ACCOUNT_STOPPED           suspended or closed: nothing may be used
├── AlertNotFound           ALERT_NOT_FOUND           no such alert was raised
├── EndpointNotFound        ENDPOINT_NOT_FOUND        no such endpoint for alerts
├── IdempotencyConflict     IDEMPOTENCY_CONFLICT      a request id used before for something else
├── InvoiceNotFound         INVOICE_NOT_FOUND         no invoice is to come
├── PaymentFailed           PAYMENT_FAILED            the card was declined
├── PaymentMethodMissing    PAYMENT_METHOD_MISSING    there is no card to charge
├── PlanNotFound            PLAN_NOT_FOUND            pricing knows no such plan
├── PlanNotSubscribable     PLAN_NOT_SUBSCRIBABLE     a plan that no subscription is for
├── PlanRetired             PLAN_RETIRED              a plan that is not sold any more
├── QuotaExceeded           QUOTA_EXCEEDED            a hard cap of the plan's is reached
├── StreamTooLong           STREAM_TOO_LONG           more messages than one stream may bring
├── StripeCatalogueMissing  STRIPE_CATALOGUE_MISSING  Stripe has no price for the plan yet
├── StripeEventNotFound     STRIPE_EVENT_NOT_FOUND    no such event was taken in
├── StripeKeyInvalid        STRIPE_KEY_INVALID        Stripe does not accept our key
├── StripeNotConfigured     STRIPE_NOT_CONFIGURED     there is no key of Stripe's
├── StripeRefused           STRIPE_REFUSED            Stripe refused what we asked
├── StripeUnavailable       STRIPE_UNAVAILABLE        Stripe does not answer, or is too busy
├── SubscriptionExists      SUBSCRIPTION_EXISTS       the account has a subscription already
├── SubscriptionNotFound    SUBSCRIPTION_NOT_FOUND    the account has no subscription
├── SubscriptionUnmovable   SUBSCRIPTION_UNMOVABLE    the subscription cannot be changed so
├── TierNotFound            TIER_NOT_FOUND            no such tier on sale
├── TooManyEndpoints        TOO_MANY_ENDPOINTS        an account has enough endpoints for alerts
└── WebhookRefused          WEBHOOK_REFUSED           not an event that Stripe has signed just now
"""

from __future__ import annotations

from services.kit.errors import Kind, ServiceError


class SubscriptionsError(ServiceError):
    """A refusal of subscriptions."""

    domain = "tollkeeper.subscriptions"


class AccountExists(SubscriptionsError):
    """The account id is taken by an account that was created with other words."""

    kind, reason = Kind.CONFLICT, "ACCOUNT_EXISTS"
    advice = "Choose another account id, or repeat the first request unchanged."


class AccountNotFound(SubscriptionsError):
    """No customer has this account id."""

    kind, reason = Kind.NOT_FOUND, "ACCOUNT_NOT_FOUND"
    advice = "Check the account id; create the account first."


class AccountNotProvisioned(SubscriptionsError):
    """The account was created, and the ledger has not taken it in yet."""

    kind, reason = Kind.UNAVAILABLE, "ACCOUNT_NOT_PROVISIONED"
    advice = "Retry in a few seconds; if it lasts, look at what is left in the outbox and why."


class AccountStopped(SubscriptionsError):
    """The account is suspended or closed."""

    kind, reason = Kind.DENIED, "ACCOUNT_STOPPED"
    advice = "Use nothing more for this account until an operator has resumed it."


class AlertNotFound(SubscriptionsError):
    """No alert has this id."""

    kind, reason = Kind.NOT_FOUND, "ALERT_NOT_FOUND"
    advice = "List the account's alerts to find the id."


class EndpointNotFound(SubscriptionsError):
    """The account has no endpoint of this id."""

    kind, reason = Kind.NOT_FOUND, "ENDPOINT_NOT_FOUND"
    advice = "List the account's endpoints to find the id."


class IdempotencyConflict(SubscriptionsError):
    """The request id was used before with other words."""

    kind, reason = Kind.CONFLICT, "IDEMPOTENCY_CONFLICT"
    advice = "Use a new request id for a new request."


class InvoiceNotFound(SubscriptionsError):
    """Nothing is to be invoiced."""

    kind, reason = Kind.NOT_FOUND, "INVOICE_NOT_FOUND"
    advice = "None: the account has no subscription, or one that ends without a further invoice."


class PaymentFailed(SubscriptionsError):
    """The payment was declined; nothing has changed and nothing is granted. The message is Stripe's, for the payer."""

    kind, reason = Kind.PAYMENT_REQUIRED, "PAYMENT_FAILED"
    advice = "Show the message to the payer; have another payment method added, then ask with a new request id."


class PaymentMethodMissing(SubscriptionsError):
    """The account has no payment method that could be charged."""

    kind, reason = Kind.PRECONDITION, "PAYMENT_METHOD_MISSING"
    advice = "Have one added first: at the portal, or by a top-up."


class PlanNotFound(SubscriptionsError):
    """Pricing knows no plan of this id."""

    kind, reason = Kind.NOT_FOUND, "PLAN_NOT_FOUND"
    advice = "Name one of the plans that GET /api/admin/plans lists."


class PlanNotSubscribable(SubscriptionsError):
    """No subscription is for this plan: it is free, or prepaid."""

    kind, reason = Kind.PRECONDITION, "PLAN_NOT_SUBSCRIBABLE"
    advice = "Name a plan that has a price; prepaid credit is bought by a top-up."


class PlanRetired(SubscriptionsError):
    """The plan is not sold any more."""

    kind, reason = Kind.PRECONDITION, "PLAN_RETIRED"
    advice = "Name a plan that is on sale."


class QuotaExceeded(SubscriptionsError):
    """More of a metric was asked for than a hard cap leaves."""

    kind, reason = Kind.EXHAUSTED, "QUOTA_EXCEEDED"
    advice = "Wait until the quota begins anew (metadata `resetsAt`), or move to a larger plan."


class StreamTooLong(SubscriptionsError):
    """The stream brought more messages than one may; those before were counted."""

    kind, reason = Kind.TOO_LARGE, "STREAM_TOO_LONG"
    advice = "Begin another stream; events that were counted count no second time."


class StripeCatalogueMissing(SubscriptionsError):
    """Stripe holds no price of the plan's present version."""

    kind, reason = Kind.PRECONDITION, "STRIPE_CATALOGUE_MISSING"
    advice = "The operator runs `python -m services.subscriptions setup-stripe`, after each change of a plan too."


class StripeEventNotFound(SubscriptionsError):
    """No event of this id was taken in."""

    kind, reason = Kind.NOT_FOUND, "STRIPE_EVENT_NOT_FOUND"
    advice = "Check the event's id; what Stripe has and we have not is found by reconciling."


class StripeKeyInvalid(SubscriptionsError):
    """Stripe does not accept the key, or the key may not do what was asked."""

    kind, reason = Kind.PRECONDITION, "STRIPE_KEY_INVALID"
    advice = "The operator sets a valid key (TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_KEY) and restarts the service."


class StripeNotConfigured(SubscriptionsError):
    """There is no key of Stripe's: nothing that needs Stripe can be done here."""

    kind, reason = Kind.PRECONDITION, "STRIPE_NOT_CONFIGURED"
    advice = "The operator sets TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_KEY; all that needs no Stripe works without."


class StripeRefused(SubscriptionsError):
    """Stripe refused what was asked for a reason that neither a retry nor the caller can mend."""

    kind, reason = Kind.INTERNAL, "STRIPE_REFUSED"
    advice = "Look for Stripe's request id (metadata `stripe_request_id`) in the log and in Stripe's dashboard."


class StripeUnavailable(SubscriptionsError):
    """Stripe does not answer, asks for fewer requests, or is at another move of the account: tried more than once."""

    kind, reason = Kind.UNAVAILABLE, "STRIPE_UNAVAILABLE"
    advice = "Retry with the same request id: what has taken effect is not done twice."


class SubscriptionExists(SubscriptionsError):
    """The account has a subscription: a second one would be paid beside it, and another plan be taken back by it."""

    kind, reason = Kind.PRECONDITION, "SUBSCRIPTION_EXISTS"
    advice = "Change the subscription (PATCH /api/billing/subscription), or end it first."


class SubscriptionNotFound(SubscriptionsError):
    """The account has no subscription."""

    kind, reason = Kind.NOT_FOUND, "SUBSCRIPTION_NOT_FOUND"
    advice = "Subscribe first: POST /api/billing/checkout."


class SubscriptionUnmovable(SubscriptionsError):
    """The subscription cannot be changed in this way as it stands; the message says why."""

    kind, reason = Kind.PRECONDITION, "SUBSCRIPTION_UNMOVABLE"
    advice = "Do what the message says first, such as paying the open invoice at the portal."


class TierNotFound(SubscriptionsError):
    """No tier of this id is on sale."""

    kind, reason = Kind.NOT_FOUND, "TIER_NOT_FOUND"
    advice = "Name one of the tiers that GET /api/credits/tiers lists."


class WebhookRefused(SubscriptionsError):
    """The body is not one that Stripe has signed with a secret of ours, or not just now, or it was altered."""

    kind, reason = Kind.INVALID, "WEBHOOK_REFUSED"
    advice = "Pass the body on as it came, byte for byte, with its Stripe-Signature header; check the signing secret."


class TooManyEndpoints(SubscriptionsError):
    """The account has as many endpoints for alerts as it may."""

    kind, reason = Kind.PRECONDITION, "TOO_MANY_ENDPOINTS"
    advice = "Delete an endpoint that is not needed any more."
