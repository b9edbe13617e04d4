"""Writes the reference pages that follow from the code: docs/reference/*.md.

Run as `python -m docs.reference`, with `--check` to fail where a committed page is not what the code gives.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import tollkeeper

import services
from docs.pages.errors import errors_page
from docs.pages.metrics import metrics_page
from docs.pages.rpcs import rpcs_page
from docs.pages.settings import settings_page
from docs.pages.status import status_page

FOLDER = Path(__file__).parent / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "metrics.md": metrics_page,
    "rpcs.md": rpcs_page,
    "settings.md": settings_page,
    "status.md": status_page,
}


def import_all() -> None:
    """Import every module of the contract and the implementation, so that all their classes are known."""
    for package in (tollkeeper, services):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations" not in module.name:
                importlib.import_module(module.name)


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is not current")
    check = parser.parse_args().check
    import_all()
    stale = []
    for name, made in PAGES.items():
        page, text = FOLDER / name, made()
        if not page.exists() or page.read_text() != text:
            stale.append(name)
            if not check:
                page.parent.mkdir(exist_ok=True)
                page.write_text(text)
    if check and stale:
        raise SystemExit(f"docs/reference: {', '.join(stale)} not current; run `make reference`")


if __name__ == "__main__":
    main()
