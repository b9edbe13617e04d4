"""Owns how Stripe's catalogue is brought to what it should hold: what is there is read, the difference is made.

What is not ours (no metadata `managed_by=tollkeeper`) is never edited; where it stands in the way, set-up stops. A
price's amount cannot be changed at Stripe: where the one under a lookup key is another, a new price takes the key.
Prices of older versions of a plan, and of plans that are not sold any more, stay as they are: there are customers who
pay them, and who come back to them.
Meters have no metadata: one is ours by its event name, is used as it is, and must add up as ours do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial

import stripe

from services.subscriptions.metering.model import meter_event_name
from services.subscriptions.stripe import names
from services.subscriptions.stripe.catalogue import (
    CatalogueError,
    Tier,
    WantedCatalogue,
    WantedMeter,
    WantedPrice,
    WantedProduct,
)
from services.subscriptions.stripe.client import stripe_errors

_PAGE_SIZE = 100
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: what it is called, and the doing."""

    verb: str
    what: str
    do: Callable[[], object]


@dataclass(slots=True)
class Found:
    """What Stripe holds, by id; `meters` map event name → active meter."""

    products: Mapping[str, stripe.Product]
    prices: Mapping[str, stripe.Price]
    meters: dict[str, stripe.billing.Meter] = field(default_factory=dict)

    def price_of(self, lookup_key: str) -> stripe.Price | None:
        """The price that has a lookup key."""
        return next((price for price in self.prices.values() if price.lookup_key == lookup_key), None)


class CatalogueSync:
    """Reads, compares, and makes the difference."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self._client = client

    def read(self) -> Found:
        """What Stripe holds now. Raises what `stripe_errors` says."""
        v1 = self._client.v1
        with stripe_errors("read the catalogue"):
            products = v1.products.list(params={"limit": _PAGE_SIZE}).auto_paging_iter()
            prices = v1.prices.list(params={"limit": _PAGE_SIZE, "expand": ["data.tiers"]}).auto_paging_iter()
            meters = v1.billing.meters.list(params={"limit": _PAGE_SIZE, "status": "active"}).auto_paging_iter()
            return Found(
                products={product.id: product for product, _ in zip(products, range(_MOST), strict=False)},
                prices={price.id: price for price, _ in zip(prices, range(_MOST), strict=False)},
                meters={meter.event_name: meter for meter, _ in zip(meters, range(_MOST), strict=False)},
            )

    def steps(self, wanted: WantedCatalogue, found: Found) -> list[Step]:
        """What is to be done, in order: meters, products, prices. Empty: nothing.

        Raises CatalogueError where something that is not ours stands in the way.
        """
        made: list[Step] = []
        for meter in wanted.meters:
            made += self._meter_steps(meter, found)
        for product in wanted.products:
            made += self._product_steps(product, found)
        for price in wanted.prices:
            made += self._price_steps(price, found)
        return made

    def _meter_steps(self, meter: WantedMeter, found: Found) -> list[Step]:
        known = found.meters.get(meter.event_name)
        if known is None:
            return [Step("create", f"meter {meter.event_name}", lambda: self._create_meter(meter, found))]
        if known.default_aggregation.formula != meter.formula:
            raise CatalogueError(
                f"meter {known.id} of event name {meter.event_name} adds up by {known.default_aggregation.formula}, "
                f"not by {meter.formula}: deactivate it first"
            )
        return []

    def _create_meter(self, meter: WantedMeter, found: Found) -> None:
        params: stripe.params.billing.MeterCreateParams = {
            "event_name": meter.event_name,
            "display_name": meter.display_name,
            "default_aggregation": {"formula": meter.formula},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
        with stripe_errors("create a meter", event_name=meter.event_name):
            found.meters[meter.event_name] = self._client.v1.billing.meters.create(params=params)

    def _product_steps(self, product: WantedProduct, found: Found) -> list[Step]:
        known = found.products.get(product.product_id)
        if known is None:
            return [Step("create", f"product {product.product_id}", lambda: self._create_product(product))]
        if not is_ours(known):
            raise CatalogueError(f"product {known.id} is there and was not made by this command: it is left alone")
        if known.active and known.name == product.name:
            return []
        return [Step("update", f"product {product.product_id}", lambda: self._update_product(product))]

    def _create_product(self, product: WantedProduct) -> None:
        params: stripe.params.ProductCreateParams = {
            "id": product.product_id,
            "name": product.name,
            "metadata": product.metadata,
        }
        with stripe_errors("create a product", product=product.product_id):
            self._client.v1.products.create(params=params)

    def _update_product(self, product: WantedProduct) -> None:
        params: stripe.params.ProductUpdateParams = {"name": product.name, "active": True, "metadata": product.metadata}
        with stripe_errors("update a product", product=product.product_id):
            self._client.v1.products.update(product.product_id, params=params)

    def _price_steps(self, price: WantedPrice, found: Found) -> list[Step]:
        known = found.price_of(price.lookup_key)
        if known is not None and not is_ours(known):
            raise CatalogueError(f"price {known.id} has lookup key {price.lookup_key} and was not made by this command")
        if known is not None and _is_as_wanted(known, price, found):
            sell = partial(self._update_price, known.id, active=True)
            return [] if known.active else [Step("activate", f"price {price.lookup_key}", sell)]
        create = Step("create", f"price {price.lookup_key} ({told(price)})", lambda: self._create_price(price, found))
        if known is None:
            return [create]
        archive = Step("archive", f"price {known.id}", partial(self._update_price, known.id, active=False))
        return [create, archive] if known.active else [create]

    def _create_price(self, price: WantedPrice, found: Found) -> None:
        params: stripe.params.PriceCreateParams = {
            "currency": names.CURRENCY,
            "product": price.product_id,
            "nickname": price.nickname,
            "lookup_key": price.lookup_key,
            "transfer_lookup_key": True,
            "metadata": price.metadata,
        }
        interval: stripe.params.PriceCreateParamsRecurring = {
            "interval": "year" if price.interval == names.YEAR else "month"
        }
        if price.cents is not None:
            params["unit_amount"] = price.cents
            params["recurring"] = interval
        else:
            meter = found.meters[meter_event_name(price.metric)]
            params["recurring"] = {**interval, "usage_type": "metered", "meter": meter.id}
            params["billing_scheme"] = "tiered"
            params["tiers_mode"] = "graduated"
            params["tiers"] = [_tier(tier) for tier in price.tiers]
        with stripe_errors("create a price", lookup_key=price.lookup_key):
            self._client.v1.prices.create(params=params)

    def _update_price(self, price_id: str, *, active: bool) -> None:
        with stripe_errors("update a price", price=price_id):
            self._client.v1.prices.update(price_id, params={"active": active})


def is_ours(made: stripe.Product | stripe.Price) -> bool:
    """Whether this command made it."""
    return names.MANAGED_BY in made.metadata and made.metadata[names.MANAGED_BY] == names.TOLLKEEPER


def told(price: WantedPrice) -> str:
    """A price for people: `$99.00 by the month`."""
    if price.cents is not None:
        return f"${price.cents // 100}.{price.cents % 100:02d} by the {price.interval}"
    steps = [f"{tier.cents:f} c each" + (f" up to {tier.up_to}" if tier.up_to else "") for tier in price.tiers]
    return ", then ".join(steps)


def _tier(tier: Tier) -> stripe.params.PriceCreateParamsTier:
    return {"up_to": tier.up_to if tier.up_to is not None else "inf", "unit_amount_decimal": tier.cents}


def _is_as_wanted(known: stripe.Price, price: WantedPrice, found: Found) -> bool:
    if str(known.product) != price.product_id or known.currency != names.CURRENCY or known.recurring is None:
        return False
    if known.recurring.interval != price.interval:
        return False
    if price.cents is not None:
        return known.unit_amount == price.cents and known.recurring.usage_type == "licensed"
    meter = found.meters.get(meter_event_name(price.metric))
    tiers = tuple(Tier(tier.up_to, Decimal(tier.unit_amount_decimal or 0)) for tier in known.tiers or [])
    return meter is not None and known.recurring.meter == meter.id and tiers == price.tiers
