"""Owns the JSON lines that calls to be priced come in as, and those that their costs go out as."""

from __future__ import annotations

import json
import re
from datetime import datetime
from decimal import Decimal
from typing import Any

from services.kit.errors import ServiceError
from services.kit.validation import Violations
from services.pricing.costing import Call
from services.pricing.model import MAX_INT64
from services.pricing.overrides import MAX_MULTIPLIER_MILLIONTHS
from services.pricing.shipped import MAX_MODEL_CHARS
from services.rating import AT_COST_MILLIONTHS, SERVICE_TIERS, STANDARD, USAGE_FIELDS, Cost, Usage

MAX_LINE_BYTES = 64 * 1024

_DIGITS = re.compile(r"-?[0-9]{1,19}")


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


_CALL_FIELDS = ("provider", "model", "service_tier", "at", "price_version", "multiplier_millionths", "account_id")
# Both spellings of proto JSON, to the name used here.
_NAMES = {spelling: name for name in (*_CALL_FIELDS, *USAGE_FIELDS) for spelling in (name, _camel(name))}


def read_line(line: bytes) -> tuple[Call, Usage]:
    """The call that a line names, and what it used.

    Proto JSON: names in camelCase or snake_case, whole numbers as numbers or strings, null for what is not given.
    Raises InvalidArgument naming every field that is wrong, also one that is not known: a misspelt count would be free.
    """
    v = Violations()
    given = _fields(v, line)
    v.raise_if_any()
    counts = {name: _whole(v, name, given.pop(name)) for name in USAGE_FIELDS if name in given}
    at = _moment(v, given.get("at"))
    call = Call(
        provider=_text(v, given, "provider", required=True),
        model=_text(v, given, "model", required=True),
        service_tier=_text(v, given, "service_tier") or STANDARD,
        multiplier_millionths=_whole(
            v, "multiplier_millionths", given.get("multiplier_millionths", AT_COST_MILLIONTHS)
        ),
        at=at,
        price_version=_whole(v, "price_version", given.get("price_version", 0)),
        account_id=_text(v, given, "account_id"),
    )
    v.one_of("service_tier", call.service_tier, SERVICE_TIERS)
    v.between("multiplier_millionths", call.multiplier_millionths, 1, MAX_MULTIPLIER_MILLIONTHS)
    v.non_negative("price_version", call.price_version)
    v.raise_if_any()
    return call, Usage(**counts)


def cost_fields(cost: Cost, *, billed: bool = False) -> dict[str, Any]:
    """A cost as its line's fields; with what the customer pays where the call named a multiplier."""
    return {
        "costNanos": str(cost.cost_nanos),
        **({"billedNanos": str(cost.billed_nanos)} if billed else {}),
        "priceVersion": cost.price_version,
        "parts": [
            {
                "component": part.component,
                "quantity": str(part.quantity),
                "nanosPerMillion": str(part.nanos_per_million),
                "costNanos": str(part.cost_nanos),
            }
            for part in cost.parts
        ],
    }


def error_fields(error: ServiceError) -> dict[str, Any]:
    """A refusal as its line's fields."""
    fields: dict[str, Any] = {"reason": error.reason, "message": error.message}
    if error.metadata:
        fields["metadata"] = error.metadata
    return {"error": fields}


def _fields(v: Violations, line: bytes) -> dict[str, Any]:
    """A line's fields by the names used here, null ones left out."""
    try:
        found = json.loads(line, parse_float=Decimal)
    except (ValueError, RecursionError):
        v.add("line", f"must be a JSON object of at most {MAX_LINE_BYTES} bytes")
        return {}
    if not isinstance(found, dict):
        v.add("line", "must be a JSON object")
        return {}
    given: dict[str, Any] = {}
    for spelling, value in found.items():
        name = _NAMES.get(spelling)
        if name is None:
            v.add(spelling[:64], "is not known")
        elif name in given:
            v.add(name, "is given twice")
        elif value is not None:
            given[name] = value
    return given


def _text(v: Violations, given: dict[str, Any], name: str, *, required: bool = False) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        v.add(name, "must be a text")
        return ""
    return v.text(name, value, max_length=MAX_MODEL_CHARS, required=required)


def _whole(v: Violations, name: str, value: object) -> int:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INT64:
        v.add(name, "must be a whole number")
        return 0
    return value


def _moment(v: Violations, value: object) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        v.add("at", "must be a moment with its UTC offset, such as 2026-11-21T09:30:00Z")
        return None
    return moment
