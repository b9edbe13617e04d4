"""Owns the schemas of the suite's databases: `python -m deploy.local.migrate SERVICE…` brings each to this release.

Each service has a command of its own for that, which is what a deployment of it runs. Here one process does it for all:
most of the time such a command takes is that of loading what it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import sqlalchemy.exc

from deploy.local.home import REPOSITORY
from services.kit import migrations
from services.kit.db import DatabaseUrlError
from services.kit.logs import configure_logs


def migrate(services: Sequence[str], environ: Mapping[str, str]) -> int:
    """Bring the database of each service, as `TOLLKEEPER_<SERVICE>_DATABASE_URL` says, up to date; the exit status."""
    for service in services:
        configure_logs(service)
        folder = REPOSITORY / "services" / service / "migrations"
        try:
            migrations.upgrade(environ[f"TOLLKEEPER_{service.upper()}_DATABASE_URL"], folder)
        except (migrations.MigrationError, DatabaseUrlError) as error:
            return _failed(service, str(error))
        except sqlalchemy.exc.OperationalError as error:
            return _failed(service, f"the database did not answer: {error.orig}")
    return 0


def _failed(service: str, message: str) -> int:
    sys.stderr.write(f"{service}: {message.strip()}\n")
    return 1


if __name__ == "__main__":
    sys.exit(migrate(sys.argv[1:], os.environ))
