"""The workers as the manifests run them: alone, probed and scraped at the metrics' address."""

import os
import sys

import pytest
from deploy_manifests import REPOSITORY

from deploy.kubernetes import credentials
from deploy.local import envoy, ports
from deploy.local.process import Program, running
from services.kit import migrations


@pytest.mark.parametrize("service", ["ledger", "subscriptions"])
def test_a_worker_serves_its_metrics_and_ends_when_asked(service, database_url, tmp_path):
    url = database_url(service)
    migrations.upgrade(url, REPOSITORY / "services" / service / "migrations")
    credentials.make(tmp_path)
    port = ports.free_port()
    settings = {
        f"TOLLKEEPER_{service.upper()}_DATABASE_URL": url,
        "TOLLKEEPER_METRICS_LISTEN": f"127.0.0.1:{port}",
        "TOLLKEEPER_IDENTITY_JWKS_FILE": str(tmp_path / "jwks.json"),
        "TOLLKEEPER_SERVICE_TOKEN_FILE": str(tmp_path / f"{service}.token"),
    }
    program = Program(
        name=f"{service}-worker",
        argv=(sys.executable, "-m", f"services.{service}", "work"),
        env={"PATH": os.defpath, **settings},
        cwd=tmp_path,
        grace_seconds=40,
    )
    log = tmp_path / "log"
    with running(program, log, lambda: b"python_info" in (envoy.get(port, "/metrics") or b"")) as worker:
        worker.stop()
        assert worker.exit_code() == 0, log.read_text()
