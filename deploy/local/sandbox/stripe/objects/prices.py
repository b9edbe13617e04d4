"""Owns prices: what a unit of a product costs, once or again and again, flat, tiered or metered."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from stripe.params._price_create_params import PriceCreateParams
from stripe.params._price_list_params import PriceListParams
from stripe.params._price_retrieve_params import PriceRetrieveParams
from stripe.params._price_search_params import PriceSearchParams
from stripe.params._price_update_params import PriceUpdateParams

from deploy.local.sandbox.stripe import money
from deploy.local.sandbox.stripe.engine import periods
from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.objects import products
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import Listing, includes, page, within
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.search import results
from deploy.local.sandbox.stripe.world import World

_LONGEST_LOOKUP_KEY = 200
_MOST_LOOKUP_KEYS = 10
_MOST_YEARS_DAYS = 3 * 366


@route(
    "POST",
    "/v1/prices",
    PriceCreateParams,
    "active billing_scheme currency lookup_key metadata nickname product product_data recurring tax_behavior tiers "
    "tiers_mode transfer_lookup_key transform_quantity unit_amount unit_amount_decimal",
)
def create(call: Call) -> Obj:
    """Add a price to a product, or to one made with it."""
    return new_price(call.world, call.params)


def new_price(world: World, params: Obj, *, hidden: bool = False) -> Obj:
    """Add a price as requested. `hidden` ones, made inline for one use, are inactive and tell nobody.

    Raises:
        Refusal: the product is missing, amounts are missing, contradictory or negative, the lookup key is taken.
    """
    recurring = _recurring(world, params.get("recurring"))
    amounts = _amounts(params)
    price: Obj = {
        "id": new_id("price"),
        "object": "price",
        "active": params.get("active", True) and not hidden,
        "billing_scheme": params.get("billing_scheme", "per_unit"),
        "created": world.now(),
        "currency": _currency(params["currency"]),
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": None,
        "metadata": merged_metadata({}, params.get("metadata")),
        "nickname": params.get("nickname"),
        "product": _product(world, params),
        "recurring": recurring,
        "tax_behavior": params.get("tax_behavior", "unspecified"),
        "tiers_mode": params.get("tiers_mode"),
        "transform_quantity": params.get("transform_quantity"),
        "type": "one_time" if recurring is None else "recurring",
        **amounts,
    }
    if price["_tiers"] and recurring is None:
        raise invalid("Tiered prices must be recurring.", "recurring")
    if (key := params.get("lookup_key")) is not None:
        _take_lookup_key(world, price, key, transfer=params.get("transfer_lookup_key", False))
    world.add(price)
    if not hidden:
        emit(world, "price.created", price)
    return price


def inline(world: World, data: Obj) -> Obj:
    """The hidden price that a request's `price_data` spells."""
    if "product" not in data and "product_data" not in data:
        raise invalid(
            "You must specify either `product` or `product_data` when creating a price.", "price_data[product]"
        )
    return new_price(world, data, hidden=True)


def _currency(given: str) -> str:
    if len(given) != 3 or not given.isascii() or not given.isalpha():  # noqa: PLR2004
        raise invalid(f"Invalid currency: {given}", "currency")
    return given.lower()


def _product(world: World, params: Obj) -> str:
    given, made = params.get("product"), params.get("product_data")
    if (given is None) == (made is None):
        raise invalid("You must specify either `product` or `product_data` when creating a price.", "product")
    if made is not None:
        product = products.new_product(world, {"type": "service", **made})
        emit(world, "product.created", product)
        return str(product["id"])
    return str(world.need("product", str(given), "product")["id"])


def _recurring(world: World, given: Obj | None) -> Obj | None:
    if given is None:
        return None
    usage, count = given.get("usage_type", "licensed"), given.get("interval_count", 1)
    if count < 1 or periods.after(0, given["interval"], count) > _MOST_YEARS_DAYS * 86_400:
        raise invalid("The interval must be from 1 day to 3 years.", "recurring[interval_count]")
    meter = given.get("meter")
    if usage == "metered" and meter is None:
        raise invalid("Metered prices must be backed by a meter: pass `recurring[meter]`.", "recurring[meter]")
    if meter is not None:
        if usage != "metered":
            raise invalid("A price with a meter must have usage_type metered.", "recurring[usage_type]")
        if world.need("billing.meter", meter, "recurring[meter]")["status"] != "active":
            raise invalid(f"The meter {meter} is inactive.", "recurring[meter]")
    return {
        "interval": given["interval"],
        "interval_count": count,
        "meter": meter,
        "trial_period_days": given.get("trial_period_days"),
        "usage_type": usage,
    }


def _amounts(params: Obj) -> Obj:
    """`unit_amount`, `unit_amount_decimal` and `_tiers` of a price."""
    tiers = params.get("tiers")
    if params.get("billing_scheme", "per_unit") == "tiered":
        if not tiers or params.get("tiers_mode") is None:
            raise invalid("Tiered prices need `tiers` and `tiers_mode`.", "tiers" if not tiers else "tiers_mode")
        if "unit_amount" in params or "unit_amount_decimal" in params or "transform_quantity" in params:
            raise invalid("Tiered prices take their amounts from `tiers` alone.", "unit_amount")
        return {"unit_amount": None, "unit_amount_decimal": None, "_tiers": _tiers(tiers)}
    if tiers is not None:
        raise invalid("`tiers` needs `billing_scheme` to be `tiered`.", "tiers")
    return {**_amount(params, "unit_amount", required=True), "_tiers": None}


def _amount(params: Obj, name: str, *, required: bool, path: str = "") -> Obj:
    """An amount given in whole cents, or as a decimal of cents, in both forms."""
    whole, exact = params.get(name), params.get(f"{name}_decimal")
    if whole is not None and exact is not None:
        raise invalid(f"You may only specify one of these parameters: {name}, {name}_decimal.", f"{path}{name}")
    if whole is None and exact is None:
        if required:
            raise invalid(
                f"You must specify either `{name}` or `{name}_decimal`.", f"{path}{name}", "parameter_missing"
            )
        return {name: None, f"{name}_decimal": None}
    value = Decimal(whole) if whole is not None else exact
    assert value is not None
    if value < 0:
        raise invalid("Invalid non-negative integer", f"{path}{name}", "parameter_invalid_integer")
    if not money.fits(value):
        raise invalid("Invalid decimal: at most 12 decimal places are allowed.", f"{path}{name}_decimal")
    return {name: int(value) if value == int(value) else None, f"{name}_decimal": money.plain(value)}


def _tiers(given: list[Obj]) -> list[Obj]:
    found: list[Obj] = []
    below = 0
    for position, tier in enumerate(given):
        path, top = f"tiers[{position}]", tier["up_to"]
        last = position == len(given) - 1
        if (top == "inf") != last:
            raise invalid("Only the last tier, and it always, is `up_to` `inf`.", f"{path}[up_to]")
        if top != "inf" and top <= below:
            raise invalid("Each tier's `up_to` must be above the one before.", f"{path}[up_to]")
        below = below if top == "inf" else top
        amounts = _amount(tier, "unit_amount", required=False, path=path) | _amount(
            tier, "flat_amount", required=False, path=path
        )
        if amounts["unit_amount_decimal"] is None and amounts["flat_amount_decimal"] is None:
            raise invalid("Each tier needs a unit amount or a flat amount.", path)
        found.append({**amounts, "up_to": None if top == "inf" else top})
    return found


def _take_lookup_key(world: World, price: Obj, key: str, *, transfer: bool) -> None:
    if len(key) > _LONGEST_LOOKUP_KEY:
        raise invalid(f"A lookup key may have at most {_LONGEST_LOOKUP_KEY} characters.", "lookup_key")
    for other in world.all("price", lookup_key=key):
        if other["id"] == price["id"]:
            continue
        if not transfer:
            raise invalid(
                f"A price (`{other['id']}`) already uses that lookup key. "
                "Pass `transfer_lookup_key=true` to transfer it to this price.",
                "lookup_key",
            )
        with change(world, "price", other["id"], "price.updated") as edited:
            edited["lookup_key"] = None
    price["lookup_key"] = key


@route(
    "POST", "/v1/prices/{id}", PriceUpdateParams, "active lookup_key metadata nickname tax_behavior transfer_lookup_key"
)
def update(call: Call) -> Obj:
    """Change what may change of a price: never its amount."""
    call.world.need("price", call.id, "price", in_path=True)
    with change(call.world, "price", call.id, "price.updated") as edited:
        for name in ("active", "nickname", "tax_behavior"):
            if name in call.params:
                edited[name] = call.params[name] if call.params[name] != "" else None
        if "metadata" in call.params:
            edited["metadata"] = merged_metadata(edited["metadata"], call.params["metadata"])
        if (key := call.get("lookup_key")) is not None:
            if key == "":
                edited["lookup_key"] = None
            else:
                _take_lookup_key(call.world, edited, key, transfer=call.get("transfer_lookup_key", False))
    return edited


@route("GET", "/v1/prices/{id}", PriceRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One price."""
    return call.world.need("price", call.id, "price", in_path=True)


@route("GET", "/v1/prices", PriceListParams, "+list active currency lookup_keys product recurring type")
def listed(call: Call) -> Listing:
    """Prices, newest first. Hidden ones are left out unless inactive ones are asked for."""
    keys = call.get("lookup_keys")
    if keys is not None and len(keys) > _MOST_LOOKUP_KEYS:
        raise invalid(f"At most {_MOST_LOOKUP_KEYS} lookup keys at once.", "lookup_keys")
    wanted = {name: call.params[name] for name in ("active", "currency", "product", "type") if name in call.params}
    found = [
        price
        for price in call.world.all("price", **wanted)
        if within(price["created"], call.get("created"))
        and (keys is None or price["lookup_key"] in keys)
        and _recurs(price, call.get("recurring"))
    ]
    return page(found, call.params, "/v1/prices")


def _recurs(price: Obj, wanted: Obj | None) -> bool:
    if not wanted:
        return True
    recurring = price["recurring"]
    return recurring is not None and all(recurring[name] == value for name, value in wanted.items())


@route("GET", "/v1/prices/search", PriceSearchParams, "query limit page")
def search(call: Call) -> Listing:
    """Prices that a query finds."""
    return results(call, "price")


@includes("price", "tiers")
def _shown_tiers(world: World, price: Obj) -> Any:
    return world.get("price", price["id"])["_tiers"]
