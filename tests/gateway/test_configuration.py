"""Every configuration that is shipped or can be asked for is one that the real Envoy takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import envoy
from gateway import render

REPOSITORY = Path(__file__).resolve().parents[2]
LOOPBACK = render.Address("127.0.0.1", 9901)
SERVICES = {
    "ledger": [render.Address("ledger.tollkeeper.svc", 9001)],
    "pricing": [render.Address("pricing.tollkeeper.svc", 9002)],
    "subscriptions": [render.Address("127.0.0.1", 9003)],
    "proxy": [render.Address("127.0.0.1", 9004), render.Address("127.0.0.1", 9005)],
}


def validate(path):
    """What the real binary says of a configuration file; fails where it does not take it."""
    done = subprocess.run(
        [sys.executable, envoy.script(), "--mode", "validate", "--disable-hot-restart", "--config-path", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    warned = [line for line in done.stderr.splitlines() if "deprecated" in line.lower()]
    assert not warned, warned


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=gateway", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())
    return str(folder)


def test_every_shipped_file_is_valid():
    for folder in ("deploy", "gateway"):
        for path in sorted((REPOSITORY / folder).rglob("envoy*.*")):
            if path.suffix in {".json", ".yaml"}:
                validate(path)


@pytest.mark.parametrize("certificate", [False, True])
@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize(
    "more",
    [{}, {"traces": render.Address("collector", 4317), "metrics": render.Address("0.0.0.0", 9902), "trusted_hops": 2}],
)
@pytest.mark.parametrize("origins", [(), ("https://app.example.com", "http://localhost:3000")])
def test_every_combination_of_options_is_valid(*, tmp_path, secrets, certificate, mutual, more, origins):
    options = render.Options(
        configuration_folder=str(tmp_path),
        certificate_folder=secrets if certificate else None,
        identity_folder=secrets if mutual else None,
        cors_origins=origins,
        **more,
    )
    written = render.files(listen=render.Address("0.0.0.0", 8443), admin=LOOPBACK, services=SERVICES, options=options)
    for name, document in written.items():
        (tmp_path / name).write_text(json.dumps(document))
    validate(tmp_path / "envoy.json")


def test_without_an_admin_interface_there_is_none(tmp_path):
    document = render.configuration(listen=LOOPBACK, admin=None, services=SERVICES)
    assert "admin" not in document
    (tmp_path / "envoy.json").write_text(json.dumps(document))
    validate(tmp_path / "envoy.json")


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "gateway.example.com"])
def test_admin_interface_that_others_can_reach_is_refused(host):
    with pytest.raises(ValueError, match=r"admin: .* not a loopback address"):
        render.configuration(listen=LOOPBACK, admin=render.Address(host, 9901), services=SERVICES)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cors_origins": ("*",)}, "cors_origins"),
        ({"cors_origins": ("https://app.example.com/",)}, "cors_origins"),
        ({"cors_origins": ("https://App.example.com",)}, "cors_origins"),
        ({"cors_origins": ("ftp://app.example.com",)}, "cors_origins"),
        ({"cors_origins": ("https://user@app.example.com",)}, "cors_origins"),
        ({"cors_origins": tuple(f"https://{n}.example.com" for n in range(101))}, "cors_origins"),
        ({"trusted_hops": -1}, "trusted_hops"),
        ({"trusted_hops": 11}, "trusted_hops"),
        ({"max_heap_bytes": 1000}, "max_heap_bytes"),
        ({"model_call_seconds": 0}, "model_call_seconds"),
        ({"max_connections": 0}, "max_connections"),
        ({"max_requests_per_service": 0}, "max_requests_per_service"),
    ],
)
def test_option_that_can_not_be_meant_is_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        render.Options(**options)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:port", "host:0", "host:70000"])
def test_text_that_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="not host:port"):
        render.Address.parse(text)


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "gateway.render", *words],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


ADDRESSES = [f"--service={name}=127.0.0.1:{port}" for port, name in enumerate(SERVICES, 9001)]


def test_command_writes_every_file_where_it_is_told_to(tmp_path, secrets):
    folder = tmp_path / "made here"
    done = command(
        *ADDRESSES, "--listen=127.0.0.1:8443", "--metrics=127.0.0.1:9902", "--cors-origin=https://a.example",
        "--output", str(folder), "--certificate-folder", secrets, "--identity-folder", secrets,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {"envoy.json", "edge_certificate.json", "service_identity.json", "service_authority.json"}
    assert {path.name for path in folder.iterdir()} == names
    validate(folder / "envoy.json")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (ADDRESSES[1:], "no address for ledger"),
        ([*ADDRESSES, "--admin=0.0.0.0:9901"], "admin"),
        ([*ADDRESSES, "--no-admin", "--metrics=127.0.0.1:9902"], "metrics"),
        ([*ADDRESSES, "--certificate-folder=/tls"], "--output"),
        ([*ADDRESSES, "--service=proxy=nowhere"], "not host:port"),
    ],
)
def test_command_says_what_is_wrong_with_its_arguments(words, named):
    done = command("--listen=127.0.0.1:8080", *words)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
