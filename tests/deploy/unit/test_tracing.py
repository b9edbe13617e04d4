"""Tracing as the component sets it up, put into every part of production."""

import json
import subprocess
import sys

import pytest
from deploy_manifests import REPOSITORY, SERVICES, complaints, environment, labels, of_kind, pod, with_component

from gateway.tracing import COLLECTOR
from services.kit.settings import ServiceSettings


def collectors(manifests) -> list[tuple[str, int]]:
    """Where a part's policy lets it reach a collector: namespace and port."""
    return [
        (peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
        for policy in of_kind(manifests, "NetworkPolicy")
        for rule in policy["spec"]["egress"]
        for peer in rule.get("to", [])
        if peer.get("podSelector", {}).get("matchLabels") == {"app.kubernetes.io/name": "opentelemetry-collector"}
        for port in rule["ports"]
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_every_server_and_worker_sends_where_its_policy_lets_it(service, tmp_path, monkeypatch):
    manifests = with_component(tmp_path / "overlay", service, "tracing")
    assert complaints(manifests) == []
    ((namespace, port),) = collectors(manifests)
    for deployment in of_kind(manifests, "Deployment"):
        for variable, value in environment(manifests, deployment).items():
            monkeypatch.setenv(variable, value)
        settings = ServiceSettings()
        assert settings.otlp_endpoint == f"http://opentelemetry-collector.{namespace}:{port}", labels(deployment)
        assert 0 < settings.trace_share <= 1


def test_the_gateway_sends_where_its_policy_lets_it(tmp_path):
    manifests = with_component(tmp_path / "overlay", "gateway", "tracing")
    assert complaints(manifests) == []
    (deployment,) = of_kind(manifests, "Deployment")
    render = pod(deployment)["initContainers"][0]
    out = tmp_path / "run"
    arguments = [argument.replace("/run/envoy", str(out)) for argument in render["args"]]
    command = [sys.executable, *render["command"][1:], *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    clusters = json.loads((out / "envoy.json").read_text())["static_resources"]["clusters"]
    (collector,) = (cluster for cluster in clusters if cluster["name"] == COLLECTOR)
    (endpoint,) = collector["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    ((namespace, port),) = collectors(manifests)
    assert address == {"address": f"opentelemetry-collector.{namespace}", "port_value": port}
