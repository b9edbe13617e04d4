"""What holds of the network: policies name pods and ports that are there, and let through what the settings need."""

import deploy_manifests as manifests
import pytest
from deploy_manifests import (
    OVERLAYS,
    SERVICES,
    WHOLES,
    containers,
    environment,
    labels,
    matches,
    name,
    of_kind,
    pod,
    rendered,
)

whole = pytest.mark.parametrize("whole", WHOLES)
# What the instances of a Postgres cluster serve; their pods are the operator's to make.
POSTGRES_PORTS = {5432, 8000, 9187}
PRIVATE = {
    "0.0.0.0/0": {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"},
    "::/0": {"fc00::/7", "fe80::/10"},
}


def pods_of(folder: str):
    """Every kind of pod: its labels and the ports it serves."""
    found = []
    for workload in of_kind(rendered(folder), "Deployment", "Job"):
        ports = {p["containerPort"] for container in containers(workload) for p in container.get("ports", [])}
        found.append((name(workload), labels(workload), ports))
    found += [
        (name(cluster), {"cnpg.io/cluster": cluster["metadata"]["name"]}, POSTGRES_PORTS)
        for cluster in of_kind(rendered(folder), "Cluster")
    ]
    return found


def rules(policy, direction):
    """(peers, ports) of each rule."""
    key = {"ingress": "from", "egress": "to"}[direction]
    return [
        (rule.get(key), {port["port"] for port in rule.get("ports", [])}) for rule in policy["spec"].get(direction, [])
    ]


def own_policies(folder):
    return [p for p in of_kind(rendered(folder), "NetworkPolicy") if p["spec"]["podSelector"]]


def ours(peer) -> bool:
    return set(peer) == {"podSelector"}


def allows(folder, caller, called, port) -> bool:
    """Whether pods with these labels may call those with the others at a port, by both sides' policies."""
    out = any(
        port in ports and any(ours(peer) and matches(peer["podSelector"], called) for peer in peers or [])
        for policy in own_policies(folder)
        if matches(policy["spec"]["podSelector"], caller)
        for peers, ports in rules(policy, "egress")
    )
    into = any(
        port in ports and any(ours(peer) and matches(peer["podSelector"], caller) for peer in peers or [])
        for policy in own_policies(folder)
        if matches(policy["spec"]["podSelector"], called)
        for peers, ports in rules(policy, "ingress")
    )
    return out and into


@whole
def test_what_no_policy_allows_is_refused(whole):
    (default,) = (p for p in of_kind(rendered(whole), "NetworkPolicy") if not p["spec"]["podSelector"])
    assert set(default["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert not default["spec"].get("ingress")
    assert not default["spec"].get("egress")


@whole
def test_every_pod_has_one_policy_for_both_directions(whole):
    for what, of, _ in pods_of(whole):
        policies = [policy for policy in own_policies(whole) if matches(policy["spec"]["podSelector"], of)]
        assert len(policies) == 1, what
        assert set(policies[0]["spec"]["policyTypes"]) == {"Ingress", "Egress"}


@whole
def test_policies_select_pods_that_are_there_and_ports_that_they_serve(whole):
    for policy in own_policies(whole):
        subjects = [pod for pod in pods_of(whole) if matches(policy["spec"]["podSelector"], pod[1])]
        assert subjects, name(policy)
        served = set().union(*(ports for _, _, ports in subjects))
        for _, ports in rules(policy, "ingress"):
            assert ports, f"{name(policy)}: all ports"
            assert ports <= served, name(policy)
        for direction in ("ingress", "egress"):
            for peers, ports in rules(policy, direction):
                for peer in filter(ours, peers or []):
                    selected = [pod for pod in pods_of(whole) if matches(peer["podSelector"], pod[1])]
                    assert selected, f"{name(policy)}: nobody is {peer}"
                    if direction == "egress":
                        assert ports <= set().union(*(served for _, _, served in selected)), name(policy)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_reaches_the_peers_of_its_settings_and_no_others(service, overlay):
    folder = f"overlays/{overlay}"
    for workload in of_kind(rendered(f"{service}/overlays/{overlay}"), "Deployment"):
        variables = environment(rendered(f"{service}/overlays/{overlay}"), workload)
        wanted = {v.removeprefix("dns:///") for k, v in variables.items() if k.endswith("_ADDR")}
        if "TOLLKEEPER_REDIS_URL" in variables:
            wanted.add(variables["TOLLKEEPER_REDIS_URL"].rpartition("@")[2].partition("/")[0])
        reached = set()
        for other in of_kind(rendered(folder), "Service"):
            called = {**other["spec"]["selector"]}
            reached |= {
                f"{other['metadata']['name']}:{port['port']}"
                for port in other["spec"]["ports"]
                if allows(folder, labels(workload), called, port["port"])
            }
        assert reached == wanted
        assert allows(folder, labels(workload), {"cnpg.io/cluster": f"tollkeeper-{service}-db"}, 5432)
        for foreign in set(SERVICES) - {service}:
            assert not allows(folder, labels(workload), {"cnpg.io/cluster": f"tollkeeper-{foreign}-db"}, 5432)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_name_peers_so_that_every_replica_is_known(overlay):
    for service in SERVICES:
        for workload in of_kind(rendered(f"{service}/overlays/{overlay}"), "Deployment"):
            variables = environment(rendered(f"{service}/overlays/{overlay}"), workload)
            addresses = {v for k, v in variables.items() if k.endswith("_ADDR")}
            assert all(address.startswith("dns:///tollkeeper-") for address in addresses)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_gateway_reaches_the_four_services_and_nothing_else(overlay):
    folder = f"overlays/{overlay}"
    (gateway,) = of_kind(rendered(f"gateway/overlays/{overlay}"), "Deployment")
    arguments = [a for a in pod(gateway)["initContainers"][0]["args"] if a.startswith("--service=")]
    addresses = dict(a.removeprefix("--service=").split("=") for a in arguments)
    assert set(addresses) == set(SERVICES)
    headless = {s["metadata"]["name"]: s for s in of_kind(rendered(folder), "Service")}
    for address in addresses.values():
        host, _, port = address.partition(":")
        assert allows(folder, labels(gateway), headless[host]["spec"]["selector"], int(port))
    (policy,) = own_policies(f"gateway/overlays/{overlay}")
    peers = [peer for peers, _ in rules(policy, "egress") for peer in peers if ours(peer)]
    assert len(peers) == len(SERVICES)


@whole
def test_what_goes_out_to_the_world_does_not_reach_inside(whole):
    worldly = [
        (name(policy), peer["ipBlock"])
        for policy in own_policies(whole)
        for peers, _ in rules(policy, "egress")
        for peer in peers or []
        if "ipBlock" in peer
    ]
    assert {of for of, _ in worldly} == {"NetworkPolicy tollkeeper-proxy", "NetworkPolicy tollkeeper-subscriptions"}
    for of, block in worldly:
        assert PRIVATE[block["cidr"]] <= set(block["except"]), of


@whole
def test_monitors_scrape_a_port_that_the_pods_name(whole):
    found = {m["metadata"]["name"]: m["spec"] for m in of_kind(rendered(whole), "PodMonitor")}
    for workload in of_kind(rendered(whole), "Deployment"):
        named = {p["name"] for container in containers(workload) for p in container.get("ports", [])}
        if "metrics" not in named:
            continue
        monitors = [
            spec
            for spec in found.values()
            if matches({"matchLabels": spec["selector"].get("matchLabels", {"": ""})}, labels(workload))
            and labels(workload)["app.kubernetes.io/component"] in spec["selector"]["matchExpressions"][0]["values"]
        ]
        assert len(monitors) == 1, name(workload)
        assert {endpoint["port"] for endpoint in monitors[0]["podMetricsEndpoints"]} == {"metrics"}


@whole
def test_every_named_secret_is_documented(whole):
    readme = (manifests.FOLDER / "README.md").read_text()
    for workload in of_kind(rendered(whole), "Deployment", "Job"):
        for path, value in manifests.walk(pod(workload)):
            if path.endswith(("secretKeyRef.name", "secret.name", "secret.secretName")):
                known = value in readme or value.endswith(("-db-app", "-db-ca")) or "-service-token" in value
                assert known, f"{value} is not in deploy/kubernetes/README.md"
