"""Owns the proof that pricing runs as a process: migrate, serve, stop on SIGTERM."""

import os
import re
import signal
import subprocess
import sys

import grpc
import pytest
from tollkeeper.pricing.v1 import plan_service_pb2, plan_service_pb2_grpc


@pytest.fixture
def environment(database_url, settings):
    return {
        **os.environ,
        "TOLLKEEPER_PRICING_DATABASE_URL": database_url("pricing"),
        "TOLLKEEPER_PRICING_LISTEN": "127.0.0.1:0",
        "TOLLKEEPER_IDENTITY_JWKS_FILE": str(settings.identity_jwks_file),
    }


def run(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "services.pricing", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_process_migrates_serves_and_stops(environment):
    refused = run(environment, "serve")
    assert refused.returncode == 1
    assert "run `python -m services.pricing migrate`" in refused.stderr
    assert run(environment, "migrate").stdout == "pricing: at revision 0002\n"
    assert run(environment, "migrate").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "services.pricing", "serve"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        address = next(found[1] for line in process.stderr if (found := re.search(r'"address": ?"([^"]+)"', line)))
        with grpc.insecure_channel(address) as channel:
            stub = plan_service_pb2_grpc.PlanServiceStub(channel)
            request = plan_service_pb2.GetPlanRequest(plan_id="payg")
            plan = stub.GetPlan(request, timeout=20, wait_for_ready=True)
        assert plan.multiplier_millionths == 1_500_000
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
