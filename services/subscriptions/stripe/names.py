"""Owns what our things are called in Stripe: ids, lookup keys, metadata, idempotency keys."""

from __future__ import annotations

from dataclasses import dataclass

# Metadata of every product, price and meter that is ours; set-up never edits what lacks it.
MANAGED_BY, TOLLKEEPER = "managed_by", "tollkeeper"
OURS = {MANAGED_BY: TOLLKEEPER}

MONTH, YEAR = "month", "year"
INTERVALS = (MONTH, YEAR)

# What a payment is for: metadata `purpose` of checkout sessions and payment intents.
PURPOSE_SUBSCRIPTION, PURPOSE_TOP_UP, PURPOSE_RECHARGE = "subscription", "top_up", "auto_recharge"

# Metadata of a subscription whose plan became a cheaper one: the dearer one is kept until what is paid for ends.
KEEPS_PLAN, KEEPS_PLAN_VERSION, KEEPS_UNTIL = "keeps_plan", "keeps_plan_version", "keeps_until"

# Stripe counts whole cents.
NANOS_PER_CENT = 10_000_000
CURRENCY = "usd"

_MAX_IDEMPOTENCY_KEY_CHARS = 255
_PRODUCT_PREFIX = "tk_"


def product_id(plan_id: str) -> str:
    """The product of a plan."""
    return f"{_PRODUCT_PREFIX}{plan_id}"


def plan_of_product(product: str) -> str:
    """The opposite of `product_id`; empty where the product is not one of ours."""
    return product.removeprefix(_PRODUCT_PREFIX) if product.startswith(_PRODUCT_PREFIX) else ""


def price_key(plan_id: str, version: int, interval: str) -> str:
    """The lookup key of what a plan version costs by the month or the year."""
    return f"tk:{plan_id}:{version}:{interval}"


def metric_price_key(plan_id: str, version: int, metric: str) -> str:
    """The lookup key of what a plan version asks for a metric's use."""
    return f"tk:{plan_id}:{version}:{metric}"


def idempotency_key(account_id: str, use_case: str, request_id: str) -> str:
    """What Stripe knows a request by: sent again with it, it takes effect once."""
    key = f"{account_id}:{use_case}:{request_id}"
    assert len(key) <= _MAX_IDEMPOTENCY_KEY_CHARS
    return key


@dataclass(frozen=True, slots=True)
class PriceName:
    """What a lookup key says: a plan version, and an interval (`month`, `year`) or a metric."""

    plan_id: str
    plan_version: int
    part: str

    @property
    def is_base(self) -> bool:
        """Whether it is the plan's own price, not a metric's."""
        return self.part in INTERVALS


def read_price_key(lookup_key: str | None) -> PriceName | None:
    """The opposite of `price_key` and `metric_price_key`; None where the price is not one of ours."""
    match (lookup_key or "").split(":"):
        case ["tk", plan_id, version, part] if plan_id and part and version.isascii() and version.isdigit():
            return PriceName(plan_id, int(version), part)
    return None
