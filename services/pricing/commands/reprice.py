"""Owns `reprice`: what a period's booked calls would have cost under another catalogue version."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime

import grpc
from google.protobuf.json_format import MessageToDict

from services.kit.command import Command, CommandError
from services.kit.errors import RemoteError, ServiceError
from services.kit.validation import is_identifier
from services.pricing import wire
from services.pricing.assembly import Parts
from services.pricing.commands.terminal import console, dollars, percent, print_json, table
from services.pricing.economics import share_basis_points
from services.pricing.repricing import RepricedModel, Repricing
from services.pricing.settings import PricingSettings

_COLUMNS = ("provider", "model", "calls", "cost", "repriced", "difference", "change", "unpriced calls")


def _arguments(parser: argparse.ArgumentParser) -> None:
    moment = "2026-11-01, or with a time 2026-11-01T12:00:00; UTC unless it says otherwise"
    parser.add_argument("--from", dest="start", type=_moment, required=True, metavar="TIME", help=moment)
    parser.add_argument("--to", dest="end", type=_moment, required=True, metavar="TIME", help="up to, not including")
    parser.add_argument("--version", type=int, required=True, metavar="N", help="the catalogue version to price by")
    parser.add_argument("--account", default="", metavar="ID", help="only this account's calls; default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-11-01") from error


def _run(chosen: argparse.Namespace, settings: Callable[[], PricingSettings]) -> int:
    if chosen.start >= chosen.end:
        raise CommandError("--to must be after --from")
    if chosen.account and not is_identifier(chosen.account):
        raise CommandError(f"--account {chosen.account}: is no account's id")
    parts = Parts(settings())
    try:
        found = parts.repricer.reprice(chosen.start, chosen.end, chosen.version, chosen.account)
        _tell(found, chosen)
    except ServiceError as error:
        raise CommandError(error.message) from error
    except grpc.RpcError as error:
        refusal = RemoteError.from_rpc(error)
        raise CommandError(f"the ledger did not answer: {refusal.code.name} {refusal.message}") from error
    finally:
        parts.close()
    return 0


def _tell(found: Repricing, chosen: argparse.Namespace) -> None:
    message = wire.repricing_to_proto(found)
    if chosen.json:
        print_json(MessageToDict(message, always_print_fields_with_no_presence=True))
        return
    whose = f" of {chosen.account}" if chosen.account else ""
    title = f"Calls{whose} from {chosen.start:%Y-%m-%d %H:%M} to {chosen.end:%Y-%m-%d %H:%M} UTC by version"
    rows = [_row(model) for model in found.models]
    total = RepricedModel(
        "in all",
        "",
        found.total("requests"),
        message.cost_nanos,
        message.repriced_cost_nanos,
        message.unpriced_requests,
    )
    console().print(table(f"{title} {chosen.version}", _COLUMNS, [*rows, _row(total)], text_columns=2))
    if message.unpriced_requests:
        left_out = f"{message.unpriced_requests:,} without a price by version {chosen.version}"
        console().print(f"Left out of the amounts: {left_out}, booked at {dollars(message.unpriced_cost_nanos)}.")


def _row(model: RepricedModel) -> tuple[str, ...]:
    return (
        model.provider,
        model.model,
        f"{model.requests:,}",
        dollars(model.cost_nanos),
        dollars(model.repriced_cost_nanos),
        dollars(model.difference_nanos),
        percent(share_basis_points(model.difference_nanos, model.cost_nanos)) if model.cost_nanos else "",
        f"{model.unpriced_requests:,}" if model.unpriced_requests else "",
    )


REPRICE: Command[PricingSettings] = Command(
    "reprice", "say what a period's calls would have cost under another version", _arguments, _run
)
