"""The schemas of all services in one process: brought to this release, and a failure named by its service."""

import os
import subprocess
import sys

from deploy.local.home import REPOSITORY
from deploy.local.ports import free_port
from services.kit import migrations


def migrate(**urls):
    """Run the command for these services, whose databases are at these URLs."""
    told = {f"TOLLKEEPER_{service.upper()}_DATABASE_URL": url for service, url in urls.items()}
    return subprocess.run(
        [sys.executable, "-m", "deploy.local.migrate", *urls],
        cwd=REPOSITORY,
        env=os.environ | told,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_schema_is_brought_to_this_release(database_url):
    urls = {service: database_url(service) for service in ("ledger", "pricing", "subscriptions", "proxy")}
    for _ in range(2):
        done = migrate(**urls)
        assert done.returncode == 0, done.stderr
    for service, url in urls.items():
        migrations.require_head(url, REPOSITORY / "services" / service / "migrations")


def test_database_that_does_not_answer_is_named_and_fails(database_url):
    url = database_url("pricing")
    failed = migrate(pricing=url, proxy=f"postgresql://proxy:none@127.0.0.1:{free_port()}/proxy")
    assert failed.returncode == 1
    assert "proxy: the database did not answer" in failed.stderr
    assert "Traceback" not in failed.stderr
