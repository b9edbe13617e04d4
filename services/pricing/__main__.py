"""Owns pricing's command line: `python -m services.pricing serve | migrate | price | import | tiers`."""

from __future__ import annotations

import sys
from pathlib import Path

from services.kit.command import main
from services.pricing.assembly import make_server
from services.pricing.commands import COMMANDS
from services.pricing.settings import PricingSettings

MIGRATIONS = Path(__file__).parent / "migrations"


if __name__ == "__main__":
    sys.exit(main(PricingSettings, serve=make_server, script_location=MIGRATIONS, own=COMMANDS))
