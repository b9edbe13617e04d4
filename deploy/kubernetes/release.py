"""Owns how one part comes to a cluster, its migration first; how it is taken back, scaled, and told to do one thing."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.kubernetes.cluster import Kubectl, Manifest

FOLDER = Path(__file__).resolve().parent
OVERLAYS = ("dev", "production")
# What has an image of ours, and so releases.
SERVICES = ("ledger", "pricing", "subscriptions", "proxy")
ROLLED = (*SERVICES, "gateway")
PARTS = ("namespace", "postgres", "redis", *ROLLED, "observability")

# What runs the new image. All else is there before it, so that it finds its settings and its policies.
_LAST = ("Deployment", "HorizontalPodAutoscaler")
# It becomes part of the Job's name, which pods get as a label: 63 characters in all.
_TAG = re.compile(r"[a-z0-9]([a-z0-9.-]{0,28}[a-z0-9])?")
_JOB_SECONDS = 1800.0
_POLL_SECONDS = 2.0
_ROLLOUT_TIMEOUT = "20m"  # a proxy that leaves may let calls run for fifteen minutes
# A command of an operator's may take long (a ledger that is verified), and its log is looked at afterwards.
_RUN_SECONDS = 24 * 3600
_RUN_KEPT_SECONDS = 3600
_ARCHIVE = "/archive"


class ReleaseError(Exception):
    """A release that was asked for wrongly, or did not get there; the message says where it stands."""


def deploy(kubectl: Kubectl, part: str, overlay: str, tag: str | None = None) -> None:
    """Bring a part to its overlay's state: everything but pods, the migration to its end, then the pods.

    Raises:
        ReleaseError: the tag is none, or the migration failed: then the pods are still those of the release before.
        subprocess.CalledProcessError: kubectl failed.
    """
    manifests = kubectl.render(FOLDER / part / "overlays" / overlay)
    if tag is not None:
        manifests = tagged(manifests, part, tag)
    jobs = [manifest for manifest in manifests if manifest["kind"] == "Job"]
    for job in jobs:
        # Of the same release, deployed before: its template cannot be changed, and done twice it finds nothing to do.
        kubectl.run(_namespace(job), "delete", "job", _name(job), "--ignore-not-found", "--wait")
    kubectl.apply([manifest for manifest in manifests if manifest["kind"] not in _LAST])
    for job in jobs:
        _await(kubectl, job)
    last = [manifest for manifest in manifests if manifest["kind"] in _LAST]
    if last:
        kubectl.apply(last)
        _await_rollout(kubectl, last)


def roll_back(kubectl: Kubectl, part: str, overlay: str) -> None:
    """Run the release before again, of a service and its worker. The schema stays: the older release works with it."""
    manifests = kubectl.render(FOLDER / part / "overlays" / overlay)
    for deployment in _deployments(manifests):
        kubectl.run(_namespace(deployment), "rollout", "undo", f"deployment/{_name(deployment)}")
    _await_rollout(kubectl, manifests)


def scale(kubectl: Kubectl, part: str, overlay: str, least: int) -> None:
    """Have at least so many pods; the autoscaler may still add to them. It holds until the next `deploy`.

    Raises:
        ReleaseError: more than the overlay's maxReplicas, which connections and limits are reckoned by.
    """
    manifests = kubectl.render(FOLDER / part / "overlays" / overlay)
    (scaler,) = (manifest for manifest in manifests if manifest["kind"] == "HorizontalPodAutoscaler")
    most = scaler["spec"]["maxReplicas"]
    if not 1 <= least <= most:
        raise ReleaseError(f"{part}: between 1 and {most}, the overlay's maxReplicas, not {least}")
    change = f'{{"spec":{{"minReplicas":{least}}}}}'
    kubectl.run(_namespace(scaler), "patch", "hpa", _name(scaler), "--type=merge", f"--patch={change}")


def run(
    kubectl: Kubectl,
    service: str,
    overlay: str,
    arguments: Sequence[str],
    *,
    tag: str | None = None,
    claim: str | None = None,
) -> None:
    """Run one command of a service (`verify`, `reconcile`) in a pod of its own, and show what it says.

    Its settings and secrets are those of the background jobs, else of the server; neither has to be there. `claim` is a
    PersistentVolumeClaim, found at /archive.

    Raises:
        ReleaseError: the tag is none, or the command did not end well.
    """
    manifests = kubectl.render(FOLDER / service / "overlays" / overlay)
    if tag is not None:
        manifests = tagged(manifests, service, tag)
    job = _one_off(_deployments(manifests)[-1], service, arguments, claim)
    # The pod finds its settings under the name that its overlay gives them.
    kubectl.apply([manifest for manifest in manifests if manifest["kind"] == "ConfigMap"])
    kubectl.apply([job])
    ended = _ended(kubectl, job, _RUN_SECONDS)
    kubectl.run(_namespace(job), "logs", f"job/{_name(job)}")
    if ended != "Complete":
        raise ReleaseError(f"{service} {' '.join(arguments)}: did not end well")


def _one_off(deployment: Manifest, service: str, arguments: Sequence[str], claim: str | None) -> Manifest:
    """A Job whose pod is the deployment's, but for what it does, and that nobody calls it."""
    template = copy.deepcopy(deployment["spec"]["template"])
    template["metadata"]["labels"]["app.kubernetes.io/component"] = "run"
    pod = template["spec"]
    pod.pop("topologySpreadConstraints", None)
    pod["restartPolicy"] = "Never"
    (container,) = pod["containers"]
    for serving in ("ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
        container.pop(serving, None)
    container["args"] = list(arguments)
    if claim is not None:
        container["volumeMounts"].append({"name": "archive", "mountPath": _ARCHIVE})
        pod["volumes"].append({"name": "archive", "persistentVolumeClaim": {"claimName": claim}})
    labels = template["metadata"]["labels"]
    name = f"tollkeeper-{service}-run-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": _namespace(deployment), "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": _RUN_SECONDS,
            "ttlSecondsAfterFinished": _RUN_KEPT_SECONDS,
            "template": template,
        },
    }


def tagged(manifests: Sequence[Manifest], part: str, tag: str) -> list[Manifest]:
    """The manifests with the part's image at `tag`, and the migration named for it.

    Raises:
        ReleaseError: the part has no image of its own, or a Job cannot be named for the tag.
    """
    if part not in ROLLED or not _TAG.fullmatch(tag):
        raise ReleaseError(f"{part}: not a tag of one of its images (a-z, 0-9, dots, dashes): {tag!r}")
    for manifest in manifests:
        if manifest["kind"] not in {"Deployment", "Job"}:
            continue
        pod = manifest["spec"]["template"]["spec"]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            repository, _, _ = container["image"].rpartition(":")
            container["image"] = f"{repository}:{tag}"
        if manifest["kind"] == "Job":
            manifest["metadata"]["name"] = f"tollkeeper-{part}-migrate-{tag}"
    return list(manifests)


def _await(kubectl: Kubectl, job: Manifest) -> None:
    if _ended(kubectl, job, _JOB_SECONDS) != "Complete":
        kubectl.run(_namespace(job), "logs", f"job/{_name(job)}", "--tail=50")
        raise ReleaseError(f"{_name(job)} did not complete; no pod was changed")


def _ended(kubectl: Kubectl, job: Manifest, seconds: float) -> str:
    """How a Job ended: Complete, Failed, or "" where it has not within so many seconds."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        status = kubectl.job(_namespace(job), _name(job)).get("status", {})
        for condition in status.get("conditions", []):
            if condition["status"] == "True" and condition["type"] in {"Complete", "Failed"}:
                return str(condition["type"])
        time.sleep(_POLL_SECONDS)
    return ""


def _await_rollout(kubectl: Kubectl, manifests: Sequence[Manifest]) -> None:
    for deployment in _deployments(manifests):
        kubectl.run(
            _namespace(deployment),
            *("rollout", "status", f"deployment/{_name(deployment)}", f"--timeout={_ROLLOUT_TIMEOUT}"),
        )


def _deployments(manifests: Sequence[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == "Deployment"]


def _namespace(manifest: Manifest) -> str:
    return str(manifest["metadata"]["namespace"])


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])
