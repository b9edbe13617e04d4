"""Owns how commands speak to a person: tables, amounts, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.kit.amounts import format_usd

_WIDE = 160


def console() -> Console:
    """Where tables go: standard output, in colour only on a terminal, wide where nobody says how wide it is."""
    return Console(file=sys.stdout, highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDE)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> Table:
    """A table; the first `text_columns` are text, the others figures."""
    made = Table(title=Text(title), title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < text_columns else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def print_json(value: object) -> None:
    """A value as one line of JSON."""
    sys.stdout.write(json.dumps(value) + "\n")


def dollars(nanos: int) -> str:
    """An amount, exact: $12.50."""
    return f"-${format_usd(-nanos)}" if nanos < 0 else f"${format_usd(nanos)}"


def percent(basis_points: int) -> str:
    """A share: 80.00 %."""
    sign = "-" if basis_points < 0 else ""
    return f"{sign}{abs(basis_points) // 100}.{abs(basis_points) % 100:02d} %"
