"""Owns search: Stripe's query language, as far as fields, metadata, comparisons and one kind of AND or OR go."""

from __future__ import annotations

import re
from typing import Any, Final

from deploy.local.sandbox.stripe.refusal import Obj, invalid
from deploy.local.sandbox.stripe.rendering import Listing, page
from deploy.local.sandbox.stripe.routes import Call

_CLAUSE: Final = re.compile(
    r"""\s*(?P<not>-)?(?P<field>[a-z_.]+)(\[(?P<q1>["'])(?P<key>.*?)(?P=q1)\])?\s*(?P<op>[:~<>]=?)\s*"""
    r"""((?P<q2>["'])(?P<text>(?:\\.|(?!(?P=q2)).)*)(?P=q2)|(?P<bare>\w+))\s*(?P<and>AND|OR|and|or|$|(?=\s|-|[a-z]))"""
)
_FIELDS: Final = {
    "charge": {"amount", "created", "currency", "customer", "disputed", "metadata", "refunded", "status"},
    "customer": {"created", "email", "metadata", "name", "phone"},
    "invoice": {"created", "currency", "customer", "metadata", "number", "status", "subscription", "total"},
    "payment_intent": {"amount", "created", "currency", "customer", "metadata", "status"},
    "price": {"active", "currency", "lookup_key", "metadata", "product", "type"},
    "product": {"active", "description", "metadata", "name", "url"},
    "subscription": {"created", "metadata", "status", "canceled_at"},
}


def results(call: Call, kind: str) -> Listing:
    """The page of objects of `kind` that the request's query finds, newest first.

    Raises:
        Refusal: the query cannot be read, or asks for a field that cannot be searched.
    """
    clauses, any_of = _parse(call.params["query"], kind)
    choose = any if any_of else all
    found = [
        obj
        for obj in call.world.all(kind)
        if not obj.get("deleted") and choose(_holds(obj, clause) for clause in clauses)
    ]
    params = {"limit": call.get("limit", 10)} | (
        {"starting_after": call.params["page"]} if "page" in call.params else {}
    )
    listing = page(found, params, f"{call.url}")
    following = listing.items[-1]["id"] if listing.has_more else None
    return Listing(listing.items, listing.url, has_more=listing.has_more, search=True, next_page=following)


def _parse(query: str, kind: str) -> tuple[list[re.Match[str]], bool]:
    clauses: list[re.Match[str]] = []
    joins = set()
    position = 0
    while position < len(query.rstrip()):
        match = _CLAUSE.match(query, position)
        if match is None or match.end() == position:
            raise invalid(f"We were unable to parse your search query: {query[:200]}", "query")
        if match["field"] not in _FIELDS[kind]:
            raise invalid(f"Field `{match['field']}` is an unsupported search field for resource `{kind}s`.", "query")
        clauses.append(match)
        if match["and"]:
            joins.add(match["and"].upper())
        position = match.end()
    if not clauses or joins == {"AND", "OR"}:
        raise invalid(f"We were unable to parse your search query: {query[:200]}", "query")
    return clauses, joins == {"OR"}


def _holds(obj: Obj, clause: re.Match[str]) -> bool:
    value = _value(obj, clause)
    wanted = clause["bare"] if clause["bare"] is not None else re.sub(r"\\(.)", r"\1", clause["text"])
    return _compare(value, clause["op"], wanted) != bool(clause["not"])


def _value(obj: Obj, clause: re.Match[str]) -> Any:
    if clause["field"] == "subscription":
        return ((obj["parent"] or {}).get("subscription_details") or {}).get("subscription")
    value = obj[clause["field"]]
    return value.get(clause["key"]) if isinstance(value, dict) else value


def _compare(value: Any, operator: str, wanted: str) -> bool:
    if wanted == "null":
        return value is None
    if value is None:
        return False
    if isinstance(value, bool):
        return str(value).lower() == wanted
    if operator == "~":
        return wanted.lower() in str(value).lower()
    if isinstance(value, int) and re.fullmatch(r"-?\d+", wanted):
        number = int(wanted)
        return {":": value == number, ">": value > number, "<": value < number, ">=": value >= number}.get(
            operator, value <= number
        )
    return str(value).lower() == wanted.lower()
