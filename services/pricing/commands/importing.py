"""Owns `import`: shows how LiteLLM's price map differs from the catalogue, and publishes that when told to."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from rich.console import Console

from services.kit.command import Command, CommandError
from services.kit.errors import ServiceError
from services.pricing.assembly import Parts
from services.pricing.commands.catalogues import read_file
from services.pricing.commands.terminal import console, dollars, print_json, table
from services.pricing.litellm.diff import CHANGED, GONE, NEW, WITHDRAWN, PriceChange
from services.pricing.litellm.importing import DEFAULT_MAX_MOVE_PERCENT, Imported, Order
from services.pricing.litellm.mapping import PriceMap
from services.pricing.litellm.wire import imported_to_proto
from services.pricing.moves import ANY_MOVE_PERCENT, moves
from services.pricing.settings import PricingSettings
from services.rating import STANDARD, PriceCard

_ROWS = 40


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE|URL", help="the map, such as model_prices_and_context_window.json")
    parser.add_argument("--apply", action="store_true", help="publish what is new and changed; default: only show it")
    parser.add_argument(
        "--max-move-percent",
        type=int,
        default=DEFAULT_MAX_MOVE_PERCENT,
        metavar="N",
        help=f"refuse where a rate moves by more; default {DEFAULT_MAX_MOVE_PERCENT}, {ANY_MOVE_PERCENT}: any move",
    )
    parser.add_argument("--reason", default="", help="why, for the record")
    parser.add_argument("--all", action="store_true", help=f"show all, not the first {_ROWS} of each")
    parser.add_argument("--json", action="store_true", help="print JSON, always all of it")


def _run(chosen: argparse.Namespace, settings: Callable[[], PricingSettings]) -> int:
    if not 0 <= chosen.max_move_percent <= ANY_MOVE_PERCENT:
        raise CommandError(f"--max-move-percent must be from 0 to {ANY_MOVE_PERCENT}")
    by_address = chosen.source.partition("://")[0].lower() in ("http", "https")
    # Of an address no more than its path: what follows that may let in whoever reads it.
    name = Path(re.split("[?#]", chosen.source)[0] if by_address else chosen.source).name
    order = Order(
        content=b"" if by_address else read_file(Path(chosen.source)),
        url=chosen.source if by_address else "",
        dry_run=not chosen.apply,
        max_move_percent=chosen.max_move_percent,
        author=_author(),
        reason=chosen.reason or f"import of {name}",
        request_id=secrets.token_hex(16),
    )
    parts = Parts(settings())
    try:
        imported = parts.prices.import_prices(order)
    except ServiceError as error:
        wrong = [f"\n  {violation.field}: {violation.description}" for violation in error.violations]
        raise CommandError(f"{error.reason}: {error.message}{''.join(wrong)}") from error
    finally:
        parts.close()
    if chosen.json:
        print_json(MessageToDict(imported_to_proto(imported)))
    else:
        _show(imported, order, None if chosen.all else _ROWS)
    return 0


def _author() -> str:
    try:
        return f"terminal:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user has no name
        return f"terminal:{os.getuid()}"


def _show(imported: Imported, order: Order, most: int | None) -> None:
    out = console()
    changed, new, withdrawn, gone = (
        [one for one in imported.changes if one.kind == kind] for kind in (CHANGED, NEW, WITHDRAWN, GONE)
    )
    _print(out, "Changed, largest moves first", _CHANGED, [row for one in changed for row in _changed_rows(one)], most)
    _print(out, "New", _NEW, [_new_row(one) for one in new], most)
    _print(out, "Withdrawn here; they stay so", _MODEL, [_model(one) for one in withdrawn], most)
    _print(out, "In the catalogue, not in the map; their prices stay", _MODEL, [_model(one) for one in gone], most)
    assert imported.price_map is not None, "a new request is no repeat"
    _show_map(out, imported.price_map, most)
    out.print(f"{len(changed)} changed, {len(new)} new, {len(gone)} not in the map.")
    large = sum(one.moves_more_than(order.max_move_percent) for one in changed)
    if large:
        out.print(f"Models that move by more than {order.max_move_percent} %: {large}.")
    if imported.version is not None:
        out.print(f"Published as version {imported.version.version}.")
    else:
        out.print("Nothing published: this was a dry run." if order.dry_run else "Nothing to publish.")


def _show_map(out: Console, price_map: PriceMap, most: int | None) -> None:
    skipped = [(one.key, one.reason) for one in price_map.skipped]
    unknown = [(field, keys[0], str(len(keys))) for field, keys in price_map.unknown.items()]
    free = [(price.provider, price.model) for price in price_map.free]
    _print(out, "Not priced", ("entry", "why"), skipped, most)
    _print(out, "Fields not understood, and not charged", ("field", "first entry", "entries"), unknown, None)
    _print(out, "Free by the map", _MODEL, free, most)
    if price_map.rounded:
        out.print(f"{len(price_map.rounded)} prices have more than 15 decimals of a dollar and were rounded to those.")


_MODEL = ("provider", "model")
_NEW = (*_MODEL, "input per million", "output per million", "rates")
_CHANGED = (*_MODEL, "rate", "was, per million", "becomes", "move")
_FIGURES = {"input per million", "output per million", "rates", "was, per million", "becomes", "move", "entries"}


def _print(
    out: Console, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], most: int | None
) -> None:
    """A table of the first rows; those that are figures are named in `_FIGURES`."""
    if not rows:
        return
    text_columns = sum(column not in _FIGURES for column in columns)
    out.print(table(f"{title} ({len(rows)})", columns, rows[:most], text_columns=text_columns))
    if most is not None and len(rows) > most:
        out.print(f"and {len(rows) - most} more: --all shows them")


def _changed_rows(change: PriceChange) -> Iterator[tuple[str, ...]]:
    assert change.before is not None, "it was priced before"
    assert change.after is not None, "it is priced still"
    assert change.before.card is not None, "it was priced before"
    assert change.after.card is not None, "it is priced still"
    rows = list(moves(change.before.card, change.after.card))
    if not rows:
        yield (*_model(change), "limits or mode only", "", "", "")
    for move in rows:
        yield (*_model(change), move.told_rate, _rate(move.was), _rate(move.becomes), move.told)


def _new_row(change: PriceChange) -> tuple[str, ...]:
    assert change.after is not None, "it is priced"
    assert change.after.card is not None, "it is priced"
    card: PriceCard = change.after.card
    rates = str(len(card.rates))
    return (*_model(change), _rate(card.rate("input", STANDARD, 0)), _rate(card.rate("output", STANDARD, 0)), rates)


def _model(change: PriceChange) -> tuple[str, str]:
    return change.provider, change.model


def _rate(nanos_per_million: int | None) -> str:
    return "none" if nanos_per_million is None else dollars(nanos_per_million)


IMPORT: Command[PricingSettings] = Command(
    "import", "show how a LiteLLM price map differs from the catalogue; publish it with --apply", _arguments, _run
)
