"""Owns the ledger's command line: `python -m services.ledger serve | migrate | work`, and its own commands."""

from __future__ import annotations

import sys
from pathlib import Path

from services.kit.command import main
from services.ledger.assembly import make_server
from services.ledger.commands import COMMANDS
from services.ledger.settings import LedgerSettings
from services.ledger.worker import work

MIGRATIONS = Path(__file__).parent / "migrations"


if __name__ == "__main__":
    sys.exit(main(LedgerSettings, serve=make_server, script_location=MIGRATIONS, work=work, own=COMMANDS))
