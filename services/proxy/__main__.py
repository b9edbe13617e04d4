"""Owns the proxy's command line: serve, migrate, bootstrap-admin-key."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from services.kit.command import main
from services.proxy.app import serve
from services.proxy.bootstrap import bootstrap_admin_key
from services.proxy.settings import ProxySettings

BOOTSTRAP = "bootstrap-admin-key"

if __name__ == "__main__":
    if sys.argv[1:] == [BOOTSTRAP]:
        sys.exit(asyncio.run(bootstrap_admin_key(ProxySettings())))
    sys.exit(main(ProxySettings, serve=serve, script_location=Path(__file__).parent / "migrations"))
