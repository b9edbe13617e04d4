"""Owns pricing's refusals.

PricingError
├── PriceNotFound        the model has no price, then or ever
├── ComponentNotPriced   the price says nothing about a component of the usage
├── CostTooLarge         the cost does not fit 64 bits
├── PriceMoveTooLarge    a publication moves a rate by more than it allows
├── PriceMapUnreachable  the address of a price map did not answer with one
├── OverrideNotFound     the account has no price of its own to end
├── TooManyOverrides     the account has as many prices of its own as it may
├── PlanNotFound         no plan, or no version of it, has this name
├── PlanExists           a plan has this name already
├── NoPlanOnSale         there is nothing to recommend
├── IdempotencyConflict  the idempotency key was used with another body
├── AccountNotFound      the ledger has no such account
├── LedgerNotConfigured  usage is asked for, and no ledger is configured
├── SubscriptionsNotConfigured  customers are asked for, and no subscriptions service is configured
├── TooManyWatchers      this process serves as many watches as it may
└── CatalogueStale       the catalogue was never read
"""

from __future__ import annotations

from services.kit.errors import Kind, ServiceError


class PricingError(ServiceError):
    """Base of pricing's refusals."""

    domain = "tollkeeper.pricing"


class PriceNotFound(PricingError):  # noqa: N818 (refusals are named for what they say)
    """The model has no price at that moment or by that version."""

    kind = Kind.NOT_FOUND
    reason = "PRICE_NOT_FOUND"
    advice = "Check the names of provider and model (dated variants have prices of their own), or publish a price."


class ComponentNotPriced(PricingError):  # noqa: N818
    """The model has a price, but none for a component (in that service tier) that the call uses."""

    kind = Kind.PRECONDITION
    reason = "COMPONENT_NOT_PRICED"
    advice = "Publish a price for the model with a rate for the component and service tier named in the metadata."


class CostTooLarge(PricingError):  # noqa: N818
    """The cost does not fit a signed 64-bit number of nanos."""

    kind = Kind.INVALID
    reason = "COST_TOO_LARGE"
    advice = "Check the counts: no call costs more than nine billion dollars."


class PriceMoveTooLarge(PricingError):  # noqa: N818
    """A publication moves a rate by more percent than its `max_move_percent`."""

    kind = Kind.PRECONDITION
    reason = "PRICE_MOVE_TOO_LARGE"
    advice = "Check the prices named; publish with a larger max_move_percent, or 0, where the move is meant."


class PriceMapUnreachable(PricingError):  # noqa: N818
    """The address of a price map did not answer, or not in time, or not with a file."""

    kind = Kind.PRECONDITION
    reason = "PRICE_MAP_UNREACHABLE"
    advice = "Check the address from where pricing runs, or send the map itself as content."


class OverrideNotFound(PricingError):  # noqa: N818
    """The account has no price of its own for the model, now or to come."""

    kind = Kind.NOT_FOUND
    reason = "OVERRIDE_NOT_FOUND"
    advice = "List the account's overrides; one for all of a provider's models is ended by the model `*`."


class TooManyOverrides(PricingError):  # noqa: N818
    """The account has as many prices of its own, in force or to come, as it may."""

    kind = Kind.PRECONDITION
    reason = "TOO_MANY_OVERRIDES"
    advice = "End overrides that are not needed, or set one for all of a provider's models."


class PlanNotFound(PricingError):  # noqa: N818
    """There is no such plan, or no such version of it."""

    kind = Kind.NOT_FOUND
    reason = "PLAN_NOT_FOUND"
    advice = "List the plans for their names and versions."


class PlanExists(PricingError):  # noqa: N818
    """There is a plan of this name already."""

    kind = Kind.CONFLICT
    reason = "PLAN_EXISTS"
    advice = "Change the plan with UpdatePlan, or choose another name; a retired plan keeps its own."


class NoPlanOnSale(PricingError):  # noqa: N818
    """No plan of the kind in question is on sale, so there is none to recommend."""

    kind = Kind.PRECONDITION
    reason = "NO_PLAN_ON_SALE"
    advice = "Put a plan on sale."


class IdempotencyConflict(PricingError):  # noqa: N818
    """The idempotency key was used before, with another body."""

    kind = Kind.CONFLICT
    reason = "IDEMPOTENCY_CONFLICT"
    advice = "Use a new request_id for a new request; send the same body to repeat one."


class AccountNotFound(PricingError):  # noqa: N818
    """The ledger has no such account."""

    kind = Kind.NOT_FOUND
    reason = "ACCOUNT_NOT_FOUND"
    advice = "Check the account's id."


class LedgerNotConfigured(PricingError):  # noqa: N818
    """The answer needs usage or transactions, and this pricing service is told of no ledger."""

    kind = Kind.PRECONDITION
    reason = "LEDGER_NOT_CONFIGURED"
    advice = "Set TOLLKEEPER_PRICING_LEDGER_ADDR (host:port) and a service token for pricing."


class SubscriptionsNotConfigured(PricingError):  # noqa: N818
    """The answer needs to know who is on which plan, and this pricing service is told of no subscriptions service."""

    kind = Kind.PRECONDITION
    reason = "SUBSCRIPTIONS_NOT_CONFIGURED"
    advice = "Set TOLLKEEPER_PRICING_SUBSCRIPTIONS_ADDR (host:port) and a service token for pricing."


class TooManyWatchers(PricingError):  # noqa: N818
    """This process serves as many watches of the catalogue as it may."""

    kind = Kind.EXHAUSTED
    reason = "TOO_MANY_WATCHERS"
    advice = "Watch once per process and share what comes; retry after a while, or run more replicas."


class CatalogueStale(PricingError):  # noqa: N818
    """The catalogue could not be read from the database since this process started."""

    kind = Kind.UNAVAILABLE
    reason = "CATALOGUE_STALE"
    advice = "Retry; where it lasts, look at the pricing service's database."
