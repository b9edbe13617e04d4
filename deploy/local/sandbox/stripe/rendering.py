"""Owns how objects leave the sandbox: inner fields out, embedded objects in, `expand`, lists and their pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from deploy.local.sandbox.stripe.refusal import Obj, invalid, no_such
from deploy.local.sandbox.stripe.world import World

_DEEPEST_EXPANSION: Final = 4
_LARGEST_PAGE: Final = 100
_DEFAULT_PAGE: Final = 10

Embed = Callable[[World, Obj], Obj]
# What an object of a kind gets when it is shown: fields computed from other objects.
_EMBEDDED: Final[dict[str, Embed]] = {}
# Fields that are shown only where they are asked for by `expand`.
_INCLUDED: Final[dict[tuple[str, str], Callable[[World, Obj], Any]]] = {}
# The kinds of object behind the fields that hold ids.
_REFERENCES: Final = {
    "balance_transaction": "balance_transaction",
    "charge": "charge",
    "configuration": "billing_portal.configuration",
    "customer": "customer",
    "default_payment_method": "payment_method",
    "default_price": "price",
    "invoice": "invoice",
    "latest_charge": "charge",
    "latest_invoice": "invoice",
    "payment_intent": "payment_intent",
    "payment_method": "payment_method",
    "pending_setup_intent": "setup_intent",
    "price": "price",
    "product": "product",
    "setup_intent": "setup_intent",
    "subscription": "subscription",
    "test_clock": "test_helpers.test_clock",
}
_SOURCES: Final = {"ch_": "charge", "re_": "refund", "du_": "dispute"}


def embeds(kind: str) -> Callable[[Embed], Embed]:
    """Register what is computed each time an object of `kind` is shown."""

    def register(function: Embed) -> Embed:
        _EMBEDDED[kind] = function
        return function

    return register


def includes(kind: str, field: str) -> Callable[[Callable[[World, Obj], Any]], Callable[[World, Obj], Any]]:
    """Register a field that is shown only where `expand` names it."""

    def register(function: Callable[[World, Obj], Any]) -> Callable[[World, Obj], Any]:
        _INCLUDED[kind, field] = function
        return function

    return register


@dataclasses.dataclass(frozen=True)
class Listing:
    """Stored objects to be shown as one page of a list, or of a search's results."""

    items: Sequence[Obj]
    url: str
    has_more: bool = False
    search: bool = False
    next_page: str | None = None


def render(world: World, obj: Obj) -> Obj:
    """An object as Stripe would show it, nothing expanded."""
    shown = {name: _public(value) for name, value in obj.items() if not name.startswith("_")}
    embed = _EMBEDDED.get(obj.get("object", ""))
    return shown | embed(world, obj) if embed is not None and not obj.get("deleted") else shown


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _public(below) for name, below in value.items() if not name.startswith("_")}
    return [_public(member) for member in value] if isinstance(value, list) else value


def answer(world: World, result: Obj | Listing, expand: Sequence[str] = ()) -> Obj:
    """What a request is answered: one object or one page, with what it asked to expand.

    Raises:
        Refusal: a field cannot be expanded.
    """
    if isinstance(result, Listing):
        kind = "search_result" if result.search else "list"
        shown: Obj = {
            "object": kind,
            "data": [render(world, item) for item in result.items],
            "has_more": result.has_more,
            "url": result.url,
        }
        if result.search:
            shown["next_page"] = result.next_page
        sources: Any = {"data": list(result.items)}
    else:
        shown = render(world, result)
        sources = result
    for path in expand:
        names = path.split(".")
        if len(names) > _DEEPEST_EXPANSION + isinstance(result, Listing):
            raise invalid(f"You cannot expand more than {_DEEPEST_EXPANSION} levels of a property", "expand")
        _expand(world, shown, sources, names, path)
    return shown


def _expand(world: World, shown: Any, source: Any, names: Sequence[str], path: str) -> None:
    """Expand `names` below `shown`, whose stored form is `source`."""
    if isinstance(shown, list):
        below = source if isinstance(source, list) and len(source) == len(shown) else shown
        for index, member in enumerate(shown):
            _expand(world, member, below[index], names, path)
        return
    if not isinstance(shown, dict) or not names:
        return
    name, rest = names[0], names[1:]
    included = _INCLUDED.get((shown.get("object", ""), name))
    if included is not None:
        shown[name] = included(world, source)
        _expand(world, shown[name], shown[name], rest, path)
        return
    if name not in shown:
        raise invalid(f"This property cannot be expanded ({path}).", "expand")
    value = shown[name]
    if isinstance(value, str):
        found = _referred(world, shown, name, value)
        if found is None:
            raise invalid(f"This property cannot be expanded ({path}).", "expand")
        shown[name] = render(world, found)
        _expand(world, shown[name], found, rest, path)
    elif isinstance(value, list) and all(isinstance(member, str) for member in value):
        if value:
            raise invalid(f"This property cannot be expanded ({path}).", "expand")
    else:
        _expand(world, value, source.get(name, value) if isinstance(source, dict) else value, rest, path)


def _referred(world: World, holder: Obj, name: str, identifier: str) -> Obj | None:
    kind = _REFERENCES.get(name)
    if name == "source" and holder.get("object") == "balance_transaction":
        kind = _SOURCES.get(identifier[:3])
    return None if kind is None else world.find(kind, identifier)


def page(items: Iterable[Obj], params: Obj, url: str) -> Listing:
    """The page of `items` (oldest first) that `limit`, `starting_after` and `ending_before` ask for, newest first.

    Raises:
        Refusal: a bad limit, both cursors, or a cursor that is not there.
    """
    limit = params.get("limit", _DEFAULT_PAGE)
    if not 1 <= limit <= _LARGEST_PAGE:
        few = limit < 1
        raise invalid(
            f"This value must be {'greater than or equal to 1' if few else f'less than or equal to {_LARGEST_PAGE}'}.",
            "limit",
            "parameter_invalid_integer",
        )
    after, before = params.get("starting_after"), params.get("ending_before")
    if after is not None and before is not None:
        raise invalid("You cannot parameterize both starting_after and ending_before.")
    newest_first = list(items)[::-1]
    if before is not None:
        end = _position(newest_first, before, "ending_before")
        start = max(0, end - limit)
        return Listing(newest_first[start:end], url, has_more=start > 0)
    start = 0 if after is None else _position(newest_first, after, "starting_after") + 1
    return Listing(newest_first[start : start + limit], url, has_more=len(newest_first) > start + limit)


def _position(items: Sequence[Obj], identifier: str, param: str) -> int:
    for position, item in enumerate(items):
        if item["id"] == identifier:
            return position
    raise no_such("object", identifier, param)


def within(value: int | None, wanted: Any) -> bool:
    """Whether a time is as a list's `created` (a number, or gt, gte, lt, lte) asks."""
    if wanted is None or wanted == {}:
        return True
    if value is None:
        return False
    if isinstance(wanted, int):
        return value == wanted
    return bool(
        value > wanted.get("gt", value - 1)
        and value >= wanted.get("gte", value)
        and value < wanted.get("lt", value + 1)
        and value <= wanted.get("lte", value)
    )


def embedded_list(items: Sequence[Any], url: str) -> Obj:
    """A list inside another object."""
    return {"object": "list", "data": list(items), "has_more": False, "url": url}
