"""Mutual TLS as the component sets it up, put into every part of production."""

import subprocess
import sys

import pytest
from deploy_manifests import (
    REPOSITORY,
    SERVICES,
    complaints,
    environment,
    labels,
    of_kind,
    pod,
    with_component,
)

from services.kit.settings import ServiceSettings

PARTS = (*SERVICES, "gateway")


@pytest.fixture(scope="module")
def with_tls(tmp_path_factory):
    """Renders a part's production overlay with a component."""
    folder = tmp_path_factory.mktemp("overlays")

    def render(part: str, component: str = "mtls"):
        return with_component(folder / f"{part}-{component}", part, component)

    return render


@pytest.mark.parametrize("part", PARTS)
def test_each_part_has_a_certificate_of_its_name_and_mounts_it(with_tls, part):
    manifests = with_tls(part)
    assert complaints(manifests) == []
    (certificate,) = of_kind(manifests, "Certificate")
    assert certificate["spec"]["dnsNames"] == [f"tollkeeper-{part}"]
    for deployment in of_kind(manifests, "Deployment"):
        (secret,) = (v["secret"] for v in pod(deployment)["volumes"] if v["name"] == "identity")
        assert secret["secretName"] == certificate["spec"]["secretName"]
        mounts = {m["name"]: m["mountPath"] for m in pod(deployment)["containers"][0]["volumeMounts"]}
        assert mounts["identity"] == "/etc/tollkeeper-tls"


@pytest.mark.parametrize("service", SERVICES)
def test_services_show_it_know_each_other_by_name_and_are_probed_with_it(with_tls, service, monkeypatch):
    manifests = with_tls(service)
    for deployment in of_kind(manifests, "Deployment"):
        for variable, value in environment(manifests, deployment).items():
            monkeypatch.setenv(variable, value)
        settings = ServiceSettings()
        files = (settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file)
        assert [str(file) for file in files] == [f"/etc/tollkeeper-tls/{n}" for n in ("tls.crt", "tls.key", "ca.crt")]
        assert set(settings.tls_service_names) == {f"tollkeeper-{name}" for name in SERVICES}
        container = pod(deployment)["containers"][0]
        if labels(deployment)["app.kubernetes.io/component"] == "serve":
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["exec"]["command"][:2] == ["python", "/app/container_health.py"]
                assert "grpc" not in container[probe]


def test_the_gateway_shows_its_own_to_the_services(with_tls, tmp_path):
    (deployment,) = of_kind(with_tls("gateway"), "Deployment")
    render = pod(deployment)["initContainers"][0]
    assert "--identity-folder=/etc/tollkeeper-tls" in render["args"]
    arguments = [argument.replace("/run/envoy", str(tmp_path)) for argument in render["args"]]
    command = [sys.executable, *render["command"][1:], *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "/etc/tollkeeper-tls" in "".join(file.read_text() for file in tmp_path.iterdir())


def test_the_authority_is_the_one_that_certificates_are_asked_of(with_tls):
    manifests = with_tls("namespace", "mtls-authority")
    assert complaints(manifests) == []
    (certificate,) = of_kind(with_tls("ledger"), "Certificate")
    issuers = {issuer["metadata"]["name"]: issuer["spec"] for issuer in of_kind(manifests, "Issuer")}
    (authority,) = of_kind(manifests, "Certificate")
    asked = issuers[certificate["spec"]["issuerRef"]["name"]]
    assert asked["ca"]["secretName"] == authority["spec"]["secretName"]
    assert authority["spec"]["isCA"]
    assert authority["spec"]["privateKey"]["rotationPolicy"] == "Never"  # else parts would not know each other
    assert "selfSigned" in issuers[authority["spec"]["issuerRef"]["name"]]
