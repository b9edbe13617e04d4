"""Owns products: what prices are for."""

from __future__ import annotations

from stripe.params._product_create_params import ProductCreateParams
from stripe.params._product_delete_params import ProductDeleteParams
from stripe.params._product_list_params import ProductListParams
from stripe.params._product_retrieve_params import ProductRetrieveParams
from stripe.params._product_search_params import ProductSearchParams
from stripe.params._product_update_params import ProductUpdateParams

from deploy.local.sandbox.stripe.engine.events import change, emit
from deploy.local.sandbox.stripe.identifiers import new_id
from deploy.local.sandbox.stripe.objects import prices
from deploy.local.sandbox.stripe.parameters import merged_metadata
from deploy.local.sandbox.stripe.refusal import Obj, Refusal, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page, within
from deploy.local.sandbox.stripe.routes import Call, route
from deploy.local.sandbox.stripe.search import results
from deploy.local.sandbox.stripe.world import World

_FIELDS = (
    "active description images marketing_features metadata name shippable statement_descriptor tax_code unit_label url"
)


@route("POST", "/v1/products", ProductCreateParams, f"id type default_price_data {_FIELDS}")
def create(call: Call) -> Obj:
    """Add a product, under an id of the caller's choice if it gives one."""
    product = new_product(call.world, call.params)
    if (data := call.get("default_price_data")) is not None:
        data = {**data, "product": product["id"]}
        product["default_price"] = prices.new_price(call.world, data)["id"]
    emit(call.world, "product.created", product)
    return product


def new_product(world: World, params: Obj) -> Obj:
    """Add a product as requested; no event.

    Raises:
        Refusal: the id is taken.
    """
    identifier = params.get("id") or new_id("product")
    if world.find("product", identifier) is not None:
        raise Refusal(400, "Product already exists.", code="resource_already_exists", param="id")
    now = world.now()
    product: Obj = {
        "id": identifier,
        "object": "product",
        "active": params.get("active", True),
        "created": now,
        "default_price": None,
        "description": params.get("description"),
        "images": params.get("images") or [],
        "livemode": False,
        "marketing_features": params.get("marketing_features") or [],
        "metadata": merged_metadata({}, params.get("metadata")),
        "name": params["name"],
        "package_dimensions": None,
        "shippable": params.get("shippable"),
        "statement_descriptor": params.get("statement_descriptor"),
        "tax_code": params.get("tax_code"),
        "type": params.get("type", "service"),
        "unit_label": params.get("unit_label"),
        "updated": now,
        "url": params.get("url"),
    }
    return world.add(product)


@route("POST", "/v1/products/{id}", ProductUpdateParams, f"default_price {_FIELDS}")
def update(call: Call) -> Obj:
    """Change a product."""
    found = call.world.need("product", call.id, in_path=True)
    default = call.get("default_price")
    if default and call.world.need("price", default, "default_price")["product"] != found["id"]:
        raise invalid(f"The price {default} is not a price of the product {found['id']}.", "default_price")
    with change(call.world, "product", found["id"], "product.updated") as edited:
        before = dict(edited)
        for name, value in call.params.items():
            if name == "metadata":
                edited["metadata"] = merged_metadata(edited["metadata"], value)
            elif name != "expand":
                edited[name] = ([] if name in ("images", "marketing_features") else None) if value == "" else value
        if edited != before:
            edited["updated"] = call.world.now()
    return edited


@route("GET", "/v1/products/{id}", ProductRetrieveParams)
def retrieve(call: Call) -> Obj:
    """One product."""
    return call.world.need("product", call.id, in_path=True)


@route("DELETE", "/v1/products/{id}", ProductDeleteParams)
def delete(call: Call) -> Obj:
    """Take a product away; only one that never had a price."""
    found = call.world.need("product", call.id, in_path=True)
    if any(call.world.all("price", product=call.id)):
        raise invalid("This product cannot be deleted because it has one or more user-created prices.")
    call.world.remove("product", call.id)
    emit(call.world, "product.deleted", found)
    return {"id": call.id, "object": "product", "deleted": True}


@route("GET", "/v1/products", ProductListParams, "+list active ids shippable url type")
def listed(call: Call) -> Listing:
    """Products, newest first."""
    wanted = {name: call.params[name] for name in ("active", "shippable", "url", "type") if name in call.params}
    found = [p for p in call.world.all("product", **wanted) if within(p["created"], call.get("created"))]
    if "ids" in call.params:
        found = [product for product in found if product["id"] in call.params["ids"]]
    return page(found, call.params, "/v1/products")


@route("GET", "/v1/products/search", ProductSearchParams, "query limit page")
def search(call: Call) -> Listing:
    """Products that a query finds."""
    return results(call, "product")
