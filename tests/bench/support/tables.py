"""Owns how a bench prints tables."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

# Wide enough for any of our tables where nobody looks at a terminal: a log breaks no lines.
_WIDTH = 150


def console() -> Console:
    """Where a bench prints to."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table; the first column is words, all others are figures."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made
