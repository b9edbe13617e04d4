# ruff: noqa: N818 (a refusal is named for what is wrong; that it is an error is said by its base)
"""Owns the refusals of subscriptions.

SubscriptionsError (domain "tollkeeper.subscriptions")
├── AccountExists           ACCOUNT_EXISTS            created before, with other words
├── AccountNotFound         ACCOUNT_NOT_FOUND         no such customer
├── AccountNotProvisioned   ACCOUNT_NOT_PROVISIONED   the ledger has not opened its book yet
├── IdempotencyConflict     IDEMPOTENCY_CONFLICT      a request id used before for something else
├── PlanNotFound            PLAN_NOT_FOUND            pricing knows no such plan
├── PlanRetired             PLAN_RETIRED              a plan that is not sold any more
└── TierNotFound            TIER_NOT_FOUND            no such tier on sale
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


class IdempotencyConflict(SubscriptionsError):
    """The request id was used before with other words."""

    kind, reason = Kind.CONFLICT, "IDEMPOTENCY_CONFLICT"
    advice = "Use a new request id for a new request."


class PlanNotFound(SubscriptionsError):
    """Pricing knows no plan of this id."""

    kind, reason = Kind.NOT_FOUND, "PLAN_NOT_FOUND"
    advice = "Name one of the plans that GET /api/admin/plans lists."


class PlanRetired(SubscriptionsError):
    """The plan is not sold any more."""

    kind, reason = Kind.PRECONDITION, "PLAN_RETIRED"
    advice = "Name a plan that is on sale."


class TierNotFound(SubscriptionsError):
    """No tier of this id is on sale."""

    kind, reason = Kind.NOT_FOUND, "TIER_NOT_FOUND"
    advice = "Name one of the tiers that GET /api/credits/tiers lists."
