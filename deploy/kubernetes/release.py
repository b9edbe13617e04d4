"""Owns how one part comes to a cluster: its migration first, then its pods; and how it is taken back and scaled."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.kubernetes.cluster import Kubectl, Manifest

FOLDER = Path(__file__).resolve().parent
OVERLAYS = ("dev", "production")
# What has an image of ours, and so releases.
ROLLED = ("ledger", "pricing", "subscriptions", "proxy", "gateway")
PARTS = ("namespace", "postgres", "redis", *ROLLED, "observability")

# What runs the new image. All else is there before it, so that it finds its settings and its policies.
_LAST = ("Deployment", "HorizontalPodAutoscaler")
# It becomes part of the Job's name, which pods get as a label: 63 characters in all.
_TAG = re.compile(r"[a-z0-9]([a-z0-9.-]{0,28}[a-z0-9])?")
_JOB_SECONDS = 1800.0
_POLL_SECONDS = 2.0
_ROLLOUT_TIMEOUT = "20m"  # a proxy that leaves may let calls run for fifteen minutes


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
    namespace, name = _namespace(job), _name(job)
    ends = time.monotonic() + _JOB_SECONDS
    while time.monotonic() < ends:
        status = kubectl.job(namespace, name).get("status", {})
        ended = {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}
        if "Complete" in ended:
            return
        if "Failed" in ended:
            break
        time.sleep(_POLL_SECONDS)
    kubectl.run(namespace, "logs", f"job/{name}", "--tail=50")
    raise ReleaseError(f"{name} did not complete; no pod was changed")


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
