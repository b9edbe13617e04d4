"""Owns the passage of imports to and from the messages of tollkeeper.pricing.v1."""

from __future__ import annotations

from tollkeeper.pricing.v1 import pricing_service_pb2 as pb

from services.kit.validation import Violations
from services.pricing import wire
from services.pricing.litellm.diff import PriceChange
from services.pricing.litellm.fetching import BadAddressError, check_address
from services.pricing.litellm.importing import DEFAULT_MAX_MOVE_PERCENT, Imported, Order
from services.pricing.litellm.reading import MAX_MAP_BYTES
from services.pricing.moves import ANY_MOVE_PERCENT

_MAX_REASON_CHARS = 500


def order_from_proto(request: pb.ImportPricesRequest, *, author: str) -> Order:
    """What is asked for. Raises InvalidArgument naming every field that is wrong."""
    v = Violations()
    dry_run = request.dry_run if request.HasField("dry_run") else True
    percent = request.max_move_percent if request.HasField("max_move_percent") else DEFAULT_MAX_MOVE_PERCENT
    v.between("max_move_percent", percent, 0, ANY_MOVE_PERCENT)
    v.text("reason", request.reason, max_length=_MAX_REASON_CHARS)
    v.identifier("request_id", request.request_id, required=not dry_run)
    if bool(request.content) == bool(request.url):
        v.add("content", "give content or url, one of the two")
    if len(request.content) > MAX_MAP_BYTES:
        v.add("content", f"must be at most {MAX_MAP_BYTES} bytes")
    if request.url:
        try:
            check_address(request.url)
        except BadAddressError as error:
            v.add("url", str(error))
    v.raise_if_any()
    return Order(request.content, request.url, dry_run, percent, author, request.reason, request.request_id)


def imported_to_proto(imported: Imported) -> pb.ImportPricesResponse:
    """What an import found or did."""
    found = imported.price_map
    response = pb.ImportPricesResponse(
        changes=map(_change_to_proto, imported.changes),
        skipped=[pb.SkippedEntry(key=one.key, reason=one.reason) for one in found.skipped] if found else (),
        unknown_fields=sorted(found.unknown) if found else (),
    )
    if imported.version is not None:
        response.version.CopyFrom(wire.version_to_proto(imported.version))
    return response


def _change_to_proto(change: PriceChange) -> pb.PriceChange:
    return pb.PriceChange(
        kind=change.kind,
        provider=change.provider,
        model=change.model,
        before=wire.price_to_proto(change.before) if change.before else None,
        after=wire.price_to_proto(change.after) if change.after else None,
        largest_move_basis_points=change.largest_move_basis_points,
    )
