"""Owns how kubectl is run: which one, with which arguments."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: a time is a text (kustomize writes it without quotes)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str) -> list[Manifest]:
    """The manifests of a rendered kustomization."""
    return [manifest for manifest in yaml.load_all(text, _Loader) if manifest]


def kubectl_program(environ: Mapping[str, str]) -> str:
    """`KUBECTL`, else the one that is installed with the project, else the one on the path."""
    ours = Path(sys.executable).with_name("kubectl")
    return environ.get("KUBECTL") or (str(ours) if ours.is_file() else "kubectl")


@dataclasses.dataclass(frozen=True)
class Kubectl:
    """Runs kubectl in the current context. Every method raises subprocess.CalledProcessError where it fails."""

    program: str

    def render(self, folder: Path) -> list[Manifest]:
        """What a kustomization comes to."""
        return read(self._run("kustomize", str(folder), capture=True))

    def apply(self, manifests: Sequence[Manifest]) -> None:
        """Make the cluster have these. What was changed by hand since (`scale`) is as declared again."""
        text = yaml.safe_dump_all(manifests, sort_keys=False)
        self._run("apply", "--server-side", "--force-conflicts", "--field-manager=tollkeeper", "-f", "-", given=text)

    def job(self, namespace: str, name: str) -> Manifest:
        """A Job as it is now."""
        found: Manifest = json.loads(self._run("-n", namespace, "get", "job", name, "-o", "json", capture=True))
        return found

    def run(self, namespace: str, *arguments: str) -> None:
        """Any other command, its output to the terminal."""
        self._run("-n", namespace, *arguments)

    def _run(self, *arguments: str, given: str | None = None, capture: bool = False) -> str:
        done = subprocess.run(  # noqa: S603 (the operator's own kubectl)
            [self.program, *arguments], input=given, stdout=subprocess.PIPE if capture else None, text=True, check=True
        )
        return done.stdout or ""
