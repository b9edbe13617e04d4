"""Owns the rendered overlays: each as `kubectl kustomize` gives it, rendered once, and what tests ask of manifests."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from deploy_custom_resources import SCHEMAS

from deploy.kubernetes.cluster import read

Manifest = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = REPOSITORY / "deploy" / "kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")
KUBERNETES = "1.37"
SERVICES = ("ledger", "pricing", "subscriptions", "proxy")
OVERLAYS = ("dev", "production")
# Everything, each by itself; the whole of an overlay besides.
FOLDERS = sorted(str(folder.parent.relative_to(FOLDER)) for folder in FOLDER.glob("**/overlays/*/kustomization.yaml"))
WHOLES = tuple(f"overlays/{overlay}" for overlay in OVERLAYS)
PODS = ("Deployment", "Job")


@functools.cache
def rendered(folder: str) -> tuple[Manifest, ...]:
    """What an overlay comes to. A warning of kubectl's is a failure: it is of something that will cease to work."""
    done = subprocess.run(
        [KUBECTL, "kustomize", FOLDER / folder], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return tuple(read(done.stdout))


def with_component(place: Path, part: str, component: str) -> tuple[Manifest, ...]:
    """A part's production overlay with one of the components, as an operator puts it in; `place` is an empty folder."""
    place.mkdir(exist_ok=True)
    root = os.path.relpath(FOLDER, place.resolve())
    (place / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: tollkeeper\n"
        f"resources: [{root}/{part}/overlays/production]\ncomponents: [{root}/components/{component}]\n"
    )
    return rendered(str(place))


def complaints(manifests: tuple[Manifest, ...]) -> list[str]:
    """What is wrong with manifests by the schemas of Kubernetes, strictly, and of the operators' resources."""
    found = []
    for manifest in manifests:
        try:
            if manifest["kind"] in SCHEMAS:
                jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
            else:
                kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        except jsonschema.ValidationError as error:
            found.append(f"{name(manifest)}: {error.json_path}: {error.message}")
    return found


def of_kind(manifests: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def name(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def pod(workload: Manifest) -> Manifest:
    return workload["spec"]["template"]["spec"]


def labels(workload: Manifest) -> dict[str, str]:
    return workload["spec"]["template"]["metadata"]["labels"]


def containers(workload: Manifest) -> list[Manifest]:
    return [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]


def environment(manifests: tuple[Manifest, ...], workload: Manifest) -> dict[str, str]:
    """The variables of a workload's container; of those from Secrets, which one, as `secret:NAME/KEY`."""
    found: dict[str, str] = {}
    configuration = {manifest["metadata"]["name"]: manifest for manifest in of_kind(manifests, "ConfigMap")}
    (container,) = pod(workload)["containers"]
    for source in container.get("envFrom", []):
        found |= configuration[source["configMapRef"]["name"]]["data"]
    for variable in container.get("env", []):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            found[variable["name"]] = f"secret:{reference['name']}/{reference['key']}"
    return found


def matches(selector: Manifest, of: dict[str, str]) -> bool:
    """Whether a label selector selects an object with these labels."""
    assert not selector.get("matchExpressions")
    return all(of.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a document with its path."""
    yield path, value
    if isinstance(value, dict):
        for key, below in value.items():
            yield from walk(below, f"{path}.{key}")
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from walk(below, f"{path}[{number}]")
