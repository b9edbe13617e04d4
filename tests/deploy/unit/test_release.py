"""How one part is brought to a cluster: `python -m deploy.kubernetes`, what it asks of kubectl, in which order."""

import copy
import subprocess
import sys

import pytest
import yaml
from deploy_manifests import FOLDER, KUBECTL, REPOSITORY, complaints, name, of_kind, rendered
from deploy_manifests import matches as selects

from deploy.kubernetes import __main__ as command
from deploy.kubernetes.cluster import Kubectl, kubectl_program


class Cluster(Kubectl):
    """What is asked of kubectl, in order: (namespace or "", arguments, what was given to apply)."""

    def __init__(self) -> None:
        super().__init__(program="kubectl")
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "migration", "Complete")
        object.__setattr__(self, "broken", "")

    def render(self, folder):
        return copy.deepcopy(list(rendered(str(folder.relative_to(FOLDER)))))

    def job(self, namespace, name):
        super().job(namespace, name)
        return {"status": {"conditions": [{"type": self.migration, "status": "True"}]}}

    def _run(self, *arguments, given=None, capture=False):  # noqa: ARG002 (as it is called)
        if self.broken in arguments:
            raise subprocess.CalledProcessError(1, ["kubectl", *arguments])
        namespace, rest = (arguments[1], arguments[2:]) if arguments[0] == "-n" else ("", arguments)
        self.asked.append((namespace, rest, list(yaml.load_all(given, yaml.CSafeLoader)) if given else []))
        return "{}"

    def verbs(self) -> list[str]:
        return [arguments[0] for _, arguments, _ in self.asked]

    def applied(self):
        return [given for _, arguments, given in self.asked if arguments[0] == "apply"]


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(command, "Kubectl", lambda _: made)
    return made


@pytest.fixture
def run(monkeypatch, cluster):
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["deploy.kubernetes", *arguments])
        return command.main()

    return call


def test_the_migration_ends_before_a_pod_of_the_new_release_begins(cluster, run):
    assert run("deploy", "ledger", "--overlay", "production", "--tag", "1.2.3-rc.1") == 0
    assert cluster.verbs() == ["delete", "apply", "get", "apply", "rollout", "rollout"]
    first, last = cluster.applied()
    (job,) = (manifest for manifest in first if manifest["kind"] == "Job")
    assert job["metadata"]["name"] == "tollkeeper-ledger-migrate-1.2.3-rc.1"
    assert {manifest["kind"] for manifest in last} == {"Deployment", "HorizontalPodAutoscaler"}
    assert not {"Deployment", "HorizontalPodAutoscaler"} & {manifest["kind"] for manifest in first}
    images = {
        container["image"]
        for manifest in [*first, *last]
        if manifest["kind"] in {"Deployment", "Job"}
        for container in manifest["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"tollkeeper-ledger:1.2.3-rc.1"}


def test_a_failed_migration_leaves_the_pods_alone(cluster, run, capsys):
    object.__setattr__(cluster, "migration", "Failed")
    assert run("deploy", "pricing", "--overlay", "production") == 1
    assert "tollkeeper-pricing-migrate-0.1.0 did not complete" in capsys.readouterr().err
    assert cluster.verbs() == ["delete", "apply", "get", "logs"]


def test_one_service_is_deployed_without_the_others(cluster, run):
    assert run("deploy", "proxy", "--overlay", "production") == 0
    for given in cluster.applied():
        for manifest in given:
            assert manifest["metadata"]["name"].startswith("tollkeeper-proxy")


def test_the_gateway_is_deployed_with_its_renderer_at_the_same_tag(cluster, run):
    assert run("deploy", "gateway", "--overlay", "production", "--tag", "2.0.0") == 0
    (deployment,) = (manifest for given in cluster.applied() for manifest in given if manifest["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    images = {container["image"] for container in [*pod["initContainers"], *pod["containers"]]}
    assert images == {"tollkeeper-gateway:2.0.0"}


@pytest.mark.parametrize("tag", ["latest!", "A", "", "1_0", "x" * 40])
def test_a_tag_that_no_job_can_be_named_for_is_refused(cluster, run, capsys, tag):
    assert run("deploy", "ledger", "--overlay", "production", "--tag", tag) == 1
    assert "not a tag" in capsys.readouterr().err
    assert cluster.asked == []


def test_a_command_runs_in_a_pod_of_its_own_that_nobody_calls(cluster, run, capsys):
    """Also where servers and workers are scaled to nothing, as in a restore; and not within a worker's memory."""
    assert (
        run("run", "ledger", "--overlay", "production", "--claim", "archive", "--", "months", "archive", "2026-01") == 0
    )
    assert cluster.verbs() == ["apply", "apply", "get", "logs"]
    (settings,), (job,) = cluster.applied()
    assert settings["kind"] == "ConfigMap"
    assert complaints((job,)) == []
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["months", "archive", "2026-01"]
    assert {"name": "archive", "mountPath": "/archive"} in container["volumeMounts"]
    assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    # Its policy lets it reach the database; no Service leads to it, no budget counts it, nobody scrapes it.
    of = job["spec"]["template"]["metadata"]["labels"]
    whole = rendered("overlays/production")
    assert [
        name(p)
        for p in of_kind(whole, "NetworkPolicy")
        if p["spec"]["podSelector"] and selects(p["spec"]["podSelector"], of)
    ]
    assert not [s for s in of_kind(whole, "Service") if selects({"matchLabels": s["spec"]["selector"]}, of)]
    assert not [b for b in of_kind(whole, "PodDisruptionBudget", "Deployment") if selects(b["spec"]["selector"], of)]
    object.__setattr__(cluster, "migration", "Failed")
    assert run("run", "ledger", "--overlay", "production", "--", "verify") == 1
    assert "ledger verify: did not end well" in capsys.readouterr().err


def test_a_rollback_takes_a_service_and_its_worker_back(cluster, run):
    assert run("rollback", "subscriptions", "--overlay", "production") == 0
    undone = [arguments[-1] for _, arguments, _ in cluster.asked if "undo" in arguments]
    assert undone == ["deployment/tollkeeper-subscriptions", "deployment/tollkeeper-subscriptions-worker"]
    assert "apply" not in cluster.verbs()


def test_a_failure_of_kubectl_is_told(cluster, run, capsys):
    object.__setattr__(cluster, "broken", "undo")
    assert run("rollback", "ledger", "--overlay", "production") == 1
    assert "undo" in capsys.readouterr().err


def test_scaling_sets_the_least_number_and_not_above_what_was_reckoned_with(cluster, run, capsys):
    assert run("scale", "ledger", "--overlay", "production", "--least", "5") == 0
    ((namespace, arguments, _),) = cluster.asked
    assert namespace == "tollkeeper"
    assert arguments[:3] == ("patch", "hpa", "tollkeeper-ledger")
    assert arguments[-1] == '--patch={"spec":{"minReplicas":5}}'
    assert run("scale", "ledger", "--overlay", "production", "--least", "9") == 1
    assert "maxReplicas" in capsys.readouterr().err


def test_the_real_kubectl_is_given_manifests_and_its_failure_told(tmp_path):
    kept = tmp_path / "applied"
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\n[ "$1" = kustomize ] && exec "{KUBECTL}" "$@"\n[ "$1" = apply ] && exec cat > "{kept}"\nexit 3\n'
    )
    kubectl.chmod(0o755)
    ours = Kubectl(kubectl_program({"KUBECTL": str(kubectl)}))
    manifests = ours.render(FOLDER / "redis/overlays/dev")
    ours.apply(manifests)
    assert list(yaml.safe_load_all(kept.read_text())) == manifests
    with pytest.raises(subprocess.CalledProcessError):
        ours.run("tollkeeper", "rollout", "undo", "deployment/tollkeeper-redis")


def test_make_has_a_command_for_each():
    for target in ("image-ledger", "image-gateway", "deploy-proxy", "rollback-pricing", "scale-subscriptions"):
        arguments = [target, "OVERLAY=production", "N=3"]
        done = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", "--assume-old=.venv/.ready", *arguments],
            check=False,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert target.partition("-")[2] in done.stdout
    assert (FOLDER / "README.md").is_file()
