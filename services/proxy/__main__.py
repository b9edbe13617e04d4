"""Owns the proxy's command line: `python -m services.proxy serve | migrate | bootstrap-admin-key`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from services.kit.command import Command, main
from services.proxy.assembly import make_server
from services.proxy.bootstrap import bootstrap_admin_key
from services.proxy.settings import ProxySettings

MIGRATIONS = Path(__file__).parent / "migrations"
BOOTSTRAP: Command[ProxySettings] = Command(
    name="bootstrap-admin-key",
    help="make an operator's key and print it, this once; each run makes another",
    arguments=lambda _: None,
    run=lambda _, settings: asyncio.run(bootstrap_admin_key(settings())),
)

if __name__ == "__main__":
    sys.exit(main(ProxySettings, serve=make_server, script_location=MIGRATIONS, own=(BOOTSTRAP,)))
