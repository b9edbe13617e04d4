"""The gateway's container, run as the manifests say: rendered, taken by the real Envoy, emptied."""

import http.client
import socket
import subprocess
import sys
import threading
import time

import pytest
from deploy_certificates import put_certificate
from deploy_manifests import OVERLAYS, REPOSITORY, of_kind, pod, rendered

from deploy.images.envoy_drain import drain, requests_under_way
from deploy.local import envoy, ports
from deploy.local.process import Program, running


def gateway(overlay: str):
    (deployment,) = of_kind(rendered(f"gateway/overlays/{overlay}"), "Deployment")
    return pod(deployment)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_init_container_renders_is_what_envoy_takes(overlay, tmp_path):
    render, container = gateway(overlay)["initContainers"][0], gateway(overlay)["containers"][0]
    assert render["command"][0] == "python"
    mounts = {"/run/envoy": tmp_path / "run", "/etc/tollkeeper/tls": tmp_path / "tls"}
    for folder in mounts.values():
        folder.mkdir()
    put_certificate(tmp_path / "tls", "localhost")

    def here(argument: str) -> str:
        for mounted, folder in mounts.items():
            argument = argument.replace(mounted, str(folder))
        return argument

    done = subprocess.run(
        [sys.executable, *render["command"][1:], *map(here, render["args"])],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    configured = [here(argument) for argument in container["args"]]
    taken = subprocess.run(
        [sys.executable, envoy.script(), "--disable-hot-restart", "--mode", "validate", *configured],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert taken.returncode == 0, taken.stderr
    assert ("--certificate-folder=/etc/tollkeeper/tls" in render["args"]) == (overlay == "production")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_gateway_that_goes_has_the_time_that_its_calls_may_take(overlay):
    found = gateway(overlay)
    command = found["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["python", "/app/envoy_drain.py"]
    seconds = {name: float(value) for name, value in (argument[2:].split("=") for argument in command[2:])}
    assert seconds["least-seconds"] >= 10
    assert found["terminationGracePeriodSeconds"] >= seconds["most-seconds"] + 10
    # It is probed, scraped and given connections where it listens.
    ports_named = {port["name"]: port["containerPort"] for port in found["containers"][0]["ports"]}
    arguments = found["initContainers"][0]["args"]
    assert f"--listen=0.0.0.0:{ports_named['edge']}" in arguments
    assert f"--metrics=0.0.0.0:{ports_named['metrics']}" in arguments


MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
STATIC = """
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {edge}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {manager}
                stat_prefix: edge
                route_config:
                  virtual_hosts:
                    - {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: slow}}}}]}}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
    - name: slow
      type: STATIC
      load_assignment:
        cluster_name: slow
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
"""


def test_draining_waits_for_the_call_under_way_and_sends_its_client_elsewhere(tmp_path):
    admin, edge = ports.free_port(), ports.free_port()
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(20)
        configuration = tmp_path / "envoy.yaml"
        configuration.write_text(
            STATIC.format(manager=MANAGER, admin=admin, edge=edge, upstream=upstream.getsockname()[1])
        )
        arguments = ("--disable-hot-restart", "--concurrency", "1", "--config-path", str(configuration))
        program = Program(
            name="envoy",
            argv=(sys.executable, str(envoy.script()), *arguments),
            env={"LC_ALL": "C"},
            cwd=tmp_path,
            grace_seconds=5,
        )
        with running(program, tmp_path / "log", lambda: envoy.get(admin, "/ready") is not None):
            client = http.client.HTTPConnection("127.0.0.1", edge, timeout=20)
            client.request("GET", "/")
            called, _ = upstream.accept()
            address = f"127.0.0.1:{admin}"
            assert requests_under_way(address) == 1
            assert not drain(address, least_seconds=0, most_seconds=0.2)

            ended = threading.Event()

            def wait_for_the_end() -> None:
                assert drain(address, least_seconds=0, most_seconds=20)
                ended.set()

            drained = threading.Thread(target=wait_for_the_end)
            drained.start()
            while called.recv(65536).find(b"\r\n\r\n") < 0:
                pass
            assert not ended.is_set()
            called.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b"ok")
            assert answer.getheader("connection") == "close"
            drained.join(timeout=20)
            assert ended.is_set()
            client.close()
            called.close()


def test_an_envoy_that_does_not_answer_is_a_failure_of_the_drain():
    started = time.monotonic()
    with pytest.raises(OSError, match="refused"):
        drain(f"127.0.0.1:{ports.free_port()}", least_seconds=5, most_seconds=5)
    assert time.monotonic() >= started
