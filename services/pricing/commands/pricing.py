"""Owns `price`: what one call costs, or each line of a batch, by the service's catalogue or a file's."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from services.kit.command import Command, CommandError
from services.kit.errors import ServiceError
from services.kit.refusals import InvalidArgument
from services.pricing.commands.catalogues import database_catalogue, file_catalogue
from services.pricing.commands.lines import MAX_LINE_BYTES, cost_fields, error_fields, read_line
from services.pricing.commands.terminal import console, dollars, print_json, table
from services.pricing.costing import Call, Catalogue, Costing
from services.pricing.settings import PricingSettings
from services.rating import AT_COST_MILLIONTHS, SERVICE_TIERS, STANDARD, USAGE_FIELDS, Cost

# Lines priced by one picture of the catalogue: a long batch sees a price published meanwhile.
_LINES_PER_PICTURE = 1_000


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("provider", nargs="?", help="who answered, such as openai")
    parser.add_argument("model", nargs="?", help="which model, by the catalogue's name")
    for name in USAGE_FIELDS:
        option, default = f"--{name.replace('_', '-')}", 1 if name == "requests" else 0
        parser.add_argument(option, type=int, metavar="N", help=f"default {default}")
    parser.add_argument("--service-tier", choices=SERVICE_TIERS, default=None, help=f"default {STANDARD}")
    parser.add_argument("--at", metavar="MOMENT", help="priced as of then, such as 2026-11-21T09:30:00Z; default now")
    parser.add_argument("--version", type=int, metavar="N", help="priced by this catalogue version")
    parser.add_argument("--account", metavar="ID", help="whose price overrides apply")
    parser.add_argument(
        "--batch", metavar="FILE", help="price JSON lines from a file, or - for standard input; one line out for each"
    )
    parser.add_argument("--catalogue", type=Path, metavar="FILE", help="price by a catalogue file or a LiteLLM map")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run(chosen: argparse.Namespace, settings: Callable[[], PricingSettings]) -> int:
    if chosen.batch is None:
        if not chosen.model:
            raise CommandError("give PROVIDER and MODEL, or --batch")
        call = _as_line(chosen)
        with _catalogue(chosen, settings) as catalogue:
            return _price_one(catalogue, call, as_json=chosen.json)
    if chosen.provider or _given(chosen):
        raise CommandError("with --batch, all is said in its lines")
    with _input(chosen.batch) as lines, _catalogue(chosen, settings) as catalogue:
        return _price_batch(catalogue, _lines(lines), sys.stdout.buffer)


def _catalogue(
    chosen: argparse.Namespace, settings: Callable[[], PricingSettings]
) -> AbstractContextManager[Catalogue]:
    return nullcontext(file_catalogue(chosen.catalogue)) if chosen.catalogue else database_catalogue(settings())


def _given(chosen: argparse.Namespace) -> dict[str, object]:
    """The options of a single call that were given, by the names of a line's fields."""
    named = {name: getattr(chosen, name) for name in (*USAGE_FIELDS, "service_tier", "at")}
    named |= {"price_version": chosen.version, "account_id": chosen.account}
    return {name: value for name, value in named.items() if value is not None}


def _as_line(chosen: argparse.Namespace) -> bytes:
    """A single call in the form of a batch's line, so that both are read in one way."""
    return json.dumps({"provider": chosen.provider, "model": chosen.model, **_given(chosen)}).encode()


def _price_one(catalogue: Catalogue, line: bytes, *, as_json: bool) -> int:
    try:
        call, usage = read_line(line)
        cost = Costing(catalogue).cost_of(call, usage)
    except ServiceError as error:
        if as_json:
            print_json(error_fields(error))
            return 1
        raise CommandError(f"{error.reason}: {error.message}") from error
    if as_json:
        print_json(cost_fields(cost))
    else:
        _show(call, cost)
    return 0


def _show(call: Call, cost: Cost) -> None:
    rows = [
        (
            part.component,
            _quantity(part.component, part.quantity),
            dollars(part.nanos_per_million),
            dollars(part.cost_nanos),
        )
        for part in cost.parts
    ]
    rows.append(("in all", "", "", dollars(cost.cost_nanos)))
    title = f"{call.provider}/{call.model}, {call.service_tier}, by version {cost.price_version}"
    console().print(table(title, ("component", "quantity", "per million", "cost"), rows))


def _quantity(component: str, quantity: int) -> str:
    return f"{quantity // 1000:,}.{quantity % 1000:03d}" if component == "second" else f"{quantity:,}"


def _price_batch(catalogue: Catalogue, lines: Iterable[bytes | None], out: BinaryIO) -> int:
    """One line out for each line in, in order, as soon as it is priced; none stops the others."""
    costing = Costing(catalogue)
    try:
        for number, line in enumerate(lines):
            if number % _LINES_PER_PICTURE == 0 and number:
                catalogue.refresh()
                costing = Costing(catalogue)
            out.write(json.dumps(_answer(costing, line), separators=(",", ":")).encode() + b"\n")
            out.flush()
    except BrokenPipeError:
        # Who read the answers has gone; nothing is to be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _answer(costing: Costing, line: bytes | None) -> dict[str, object]:
    try:
        if line is None:
            raise InvalidArgument(f"invalid line: must be at most {MAX_LINE_BYTES} bytes")
        call, usage = read_line(line)
        return cost_fields(costing.cost_of(call, usage), billed=call.multiplier_millionths != AT_COST_MILLIONTHS)
    except ServiceError as error:
        return error_fields(error)


def _lines(source: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file or stream as they come; None for one that is too long, of which no more is kept."""
    while line := source.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = source.readline(MAX_LINE_BYTES)
        yield None


def _input(name: str) -> AbstractContextManager[BinaryIO]:
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror}") from error


PRICE: Command[PricingSettings] = Command("price", "say what a call costs, or each line of a batch", _arguments, _run)
