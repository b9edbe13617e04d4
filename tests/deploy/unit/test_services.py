"""What holds for each service's manifests, against its own code: settings, ports, probes, draining, migration."""

import importlib
import re
import shutil

import deploy_manifests as manifests
import pytest
from deploy_manifests import OVERLAYS, SERVICES, containers, environment, labels, matches, name, of_kind, pod, rendered

from gateway.options import SETTLING_SECONDS, Options
from services.kit.addresses import split_address
from services.kit.settings import ServiceSettings

# The kit's own way of naming a server's address; what is left over is what every service needs to be of use.
NEEDED = ("LISTEN", "METRICS_LISTEN", "DATABASE_URL", "IDENTITY_JWKS_FILE", "GRACE_SECONDS")
# What a service stops after its calls have ended: background jobs are waited for that long (subscriptions/worker.py).
STOP_SECONDS = 20
# From a pod's being made to its being ready, where its image is there already: at least.
START_SECONDS = 3
CASES = [(service, overlay) for service in SERVICES for overlay in OVERLAYS]
each = pytest.mark.parametrize(("service", "overlay"), CASES)


def settings_class(service: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"services.{service}.settings")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ServiceSettings) and value is not ServiceSettings
    )
    return found


def parts(service: str, overlay: str):
    return rendered(f"{service}/overlays/{overlay}")


def workload(service: str, overlay: str, component: str):
    found = of_kind(parts(service, overlay), "Deployment", "Job")
    (one,) = (w for w in found if labels(w)["app.kubernetes.io/component"] == component)
    return one


def workloads(service: str, overlay: str):
    return of_kind(parts(service, overlay), "Deployment", "Job")


def configured(service: str, overlay: str, component: str, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    """The service's settings as its container would read them, secrets stood in for."""
    variables = environment(parts(service, overlay), workload(service, overlay, component))
    for variable, value in variables.items():
        monkeypatch.setenv(variable, "stand-in" if value.startswith("secret:") else value)
    return settings_class(service)()


@each
def test_every_variable_is_a_setting_of_the_service(service, overlay):
    fields = {field.upper() for field in settings_class(service).model_fields}
    for each_workload in workloads(service, overlay):
        for variable in environment(parts(service, overlay), each_workload):
            if not variable.startswith("TOLLKEEPER_"):
                # libpq's own, and a part of the URL of Redis below it.
                assert variable in {"PGSSLMODE", "PGSSLROOTCERT", "REDIS_PASSWORD"}
                continue
            plain = variable.removeprefix("TOLLKEEPER_")
            assert plain in fields or plain.removeprefix(f"{service.upper()}_") in fields, variable


@each
def test_the_settings_are_valid_and_those_needed_are_there(service, overlay, monkeypatch):
    variables = environment(parts(service, overlay), workload(service, overlay, "serve"))
    fields = settings_class(service).model_fields
    needed = {*NEEDED, *(field.upper() for field in fields if field.endswith("_addr"))}
    if any(field.endswith("_addr") for field in fields):
        needed.add("SERVICE_TOKEN_FILE")
    if service == "proxy":
        needed |= {"IDENTITY_SIGNING_KEY_FILE", "REDIS_URL"}
    for setting in needed:
        assert {f"TOLLKEEPER_{setting}", f"TOLLKEEPER_{service.upper()}_{setting}"} & set(variables), setting
    settings = configured(service, overlay, "serve", monkeypatch)
    assert settings.grace_seconds == float(variables["TOLLKEEPER_GRACE_SECONDS"])


@each
def test_every_file_that_a_setting_names_is_mounted(service, overlay):
    for each_workload in workloads(service, overlay):
        (container,) = pod(each_workload)["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        files = {
            f"{mounts[volume['name']]}/{item['path']}"
            for volume in pod(each_workload)["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
            for item in (source.get("secret") or source.get("configMap"))["items"]
        }
        variables = environment(parts(service, overlay), each_workload)
        named = {v for k, v in variables.items() if k.endswith("_FILE") or k == "PGSSLROOTCERT"}
        assert named
        assert named <= files


@each
def test_ports_of_settings_containers_services_and_probes_agree(service, overlay, monkeypatch):
    settings = configured(service, overlay, "serve", monkeypatch)
    host, port = split_address(settings.listen)
    assert host == "0.0.0.0"
    serving = workload(service, overlay, "serve")
    (container,) = pod(serving)["containers"]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {"grpc": port, "metrics": split_address(settings.metrics_listen)[1]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if (service, probe) == ("proxy", "startupProbe"):  # below
            continue
        assert container[probe]["grpc"]["port"] == port
    (headless,) = of_kind(parts(service, overlay), "Service")
    assert headless["spec"]["clusterIP"] == "None"
    assert [(p["port"], p["targetPort"]) for p in headless["spec"]["ports"]] == [(port, "grpc")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_proxy_without_prices_takes_no_other_s_place(overlay):
    """It serves without, and refuses every call (tests/deploy/integration/test_container_health.py)."""
    (container,) = pod(workload("proxy", overlay, "serve"))["containers"]
    (_, script, gauge) = container["startupProbe"]["exec"]["command"]
    assert script == "/app/container_health.py"
    assert gauge == "--gauge=tollkeeper_proxy_catalogue_connected"
    assert (
        "`tollkeeper_proxy_catalogue_connected`"
        in (manifests.REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", ["ledger", "subscriptions"])
def test_a_worker_is_probed_at_a_port_it_serves(service, overlay, monkeypatch):
    settings = configured(service, overlay, "work", monkeypatch)
    (container,) = pod(workload(service, overlay, "work"))["containers"]
    assert container["args"] == ["work"]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {"metrics": split_address(settings.metrics_listen)[1]}
    assert {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe")} == {"metrics"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_background_jobs_run_in_the_worker_alone(overlay, monkeypatch):
    assert not configured("subscriptions", overlay, "serve", monkeypatch).deliver_in_serve


@each
def test_only_servers_get_calls_and_each_budget_selects_its_own_pods(service, overlay):
    (headless,) = of_kind(parts(service, overlay), "Service")
    for each_workload in workloads(service, overlay):
        component = labels(each_workload)["app.kubernetes.io/component"]
        assert matches({"matchLabels": headless["spec"]["selector"]}, labels(each_workload)) == (component == "serve")
        if each_workload["kind"] == "Deployment":
            assert matches(each_workload["spec"]["selector"], labels(each_workload))
            for spread in pod(each_workload)["topologySpreadConstraints"]:
                assert matches(spread["labelSelector"], labels(each_workload))
    deployments = of_kind(parts(service, overlay), "Deployment")
    budgets = of_kind(parts(service, overlay), "PodDisruptionBudget")
    selected = [[name(d) for d in deployments if matches(b["spec"]["selector"], labels(d))] for b in budgets]
    assert sorted(selected) == sorted([name(d)] for d in deployments)


def cores(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else float(quantity)


@each
def test_the_autoscaler_scales_the_server_whose_number_nobody_else_sets(service, overlay):
    (scaler,) = of_kind(parts(service, overlay), "HorizontalPodAutoscaler")
    serving = workload(service, overlay, "serve")
    assert scaler["spec"]["scaleTargetRef"]["name"] == serving["metadata"]["name"]
    assert "replicas" not in serving["spec"]
    assert 1 <= scaler["spec"]["minReplicas"] <= scaler["spec"]["maxReplicas"]
    assert overlay == "dev" or scaler["spec"]["minReplicas"] >= 2
    # At the same load everywhere, and in production before a pod has used up what it was promised.
    (metric,) = scaler["spec"]["metrics"]
    assert metric["resource"]["target"]["type"] == "AverageValue"
    (container,) = pod(serving)["containers"]
    if overlay == "production":
        assert cores(metric["resource"]["target"]["averageValue"]) <= cores(container["resources"]["requests"]["cpu"])


@each
def test_a_pod_that_goes_has_the_time_that_its_calls_may_take(service, overlay, monkeypatch):
    settings = configured(service, overlay, "serve", monkeypatch)
    serving = pod(workload(service, overlay, "serve"))
    before = serving["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert serving["terminationGracePeriodSeconds"] >= before + settings.grace_seconds + STOP_SECONDS
    rolling = workload(service, overlay, "serve")["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxUnavailable"] == 0
    assert rolling["maxSurge"] >= 1


def test_a_proxy_in_production_lets_the_longest_call_end(monkeypatch):
    settings = configured("proxy", "production", "serve", monkeypatch)
    assert settings.grace_seconds >= settings.upstream_total_seconds


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_is_the_proxy_that_ends_a_model_call(overlay, monkeypatch):
    settings = configured("proxy", overlay, "serve", monkeypatch)
    (gateway,) = of_kind(rendered(f"gateway/overlays/{overlay}"), "Deployment")
    (container,) = pod(gateway)["initContainers"]
    told = dict(argument[2:].split("=", 1) for argument in container["args"])
    gateway_seconds = int(told.get("model-call-seconds", Options().model_call_seconds))
    assert gateway_seconds >= settings.upstream_total_seconds + SETTLING_SECONDS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_proxies_without_redis_share_limits_among_as_many_as_there_may_be(overlay, monkeypatch):
    (scaler,) = of_kind(parts("proxy", overlay), "HorizontalPodAutoscaler")
    assert configured("proxy", overlay, "serve", monkeypatch).replicas == scaler["spec"]["maxReplicas"]


@each
def test_the_migration_runs_the_deployment_s_image_under_a_name_of_the_release(service, overlay):
    job = workload(service, overlay, "migrate")
    images = {
        container["image"] for each_workload in workloads(service, overlay) for container in containers(each_workload)
    }
    (image,) = images
    tag = image.rpartition(":")[2]
    assert job["metadata"]["name"] == f"tollkeeper-{service}-migrate-{tag}"
    assert pod(job)["containers"][0]["args"] == ["migrate"]
    assert pod(job)["restartPolicy"] == "Never"


@each
def test_a_registry_with_a_port_makes_no_other_name_of_the_migration(service, overlay, tmp_path):
    shutil.copytree(manifests.FOLDER, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / service / "overlays" / overlay
    settings = (folder / "kustomization.yaml").read_text()
    ours = f"- name: tollkeeper-{service}\n    newTag"
    repository = f"registry.example:5000/billing/tollkeeper-{service}"
    theirs = ours.replace("newTag", f"newName: {repository}\n    newTag")
    assert settings.count(ours) == 1
    (folder / "kustomization.yaml").write_text(settings.replace(ours, theirs))
    found = manifests.rendered(str(folder))
    (job,) = of_kind(found, "Job")
    pulled, _, tag = containers(job)[0]["image"].rpartition(":")
    assert pulled == repository
    assert job["metadata"]["name"] == f"tollkeeper-{service}-migrate-{tag}"
    assert not manifests.complaints(found)


@each
def test_the_migration_does_not_change_with_a_setting(service, overlay):
    job = workload(service, overlay, "migrate")
    assert "envFrom" not in pod(job)["containers"][0]
    generated = {m["metadata"]["name"] for m in of_kind(parts(service, overlay), "ConfigMap")}
    assert not any(isinstance(value, str) and value in generated for _, value in manifests.walk(job))


@each
def test_a_changed_setting_rolls_the_pods(service, overlay):
    (configuration,) = of_kind(parts(service, overlay), "ConfigMap")
    assert re.fullmatch(rf"tollkeeper-{service}-[a-z0-9]{{10}}", configuration["metadata"]["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", SERVICES)
def test_the_database_takes_the_connections_of_as_many_pods_as_there_may_be(service, overlay, monkeypatch):
    settings = configured(service, overlay, "serve", monkeypatch)
    (scaler,) = of_kind(parts(service, overlay), "HorizontalPodAutoscaler")
    # A ledger's writers have connections of their own; a worker has about as many as a server, and leads with one.
    each_pod = settings.database_pool_size + getattr(settings, "writers", 0) + 1
    workers = sum(w["spec"].get("replicas", 0) + 1 for w in of_kind(parts(service, overlay), "Deployment")[1:])
    most = scaler["spec"]["maxReplicas"]
    # In a rollout pods that go keep their connections while their calls end, and others are ready meanwhile.
    serving = workload(service, overlay, "serve")
    a_pod_comes_every = serving["spec"]["minReadySeconds"] + START_SECONDS
    leaving = min(most, -(-pod(serving)["terminationGracePeriodSeconds"] // a_pod_comes_every))
    pods = most + 1 + leaving + workers
    (cluster,) = (
        c
        for c in of_kind(rendered(f"postgres/overlays/{overlay}"), "Cluster")
        if c["metadata"]["name"] == f"tollkeeper-{service}-db"
    )
    reserved = 20  # replication, the operator, an operator at a terminal
    assert pods * each_pod + reserved <= int(cluster["spec"]["postgresql"]["parameters"]["max_connections"])


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", SERVICES)
def test_the_database_and_its_secrets_are_those_the_operator_makes(service, overlay):
    (cluster,) = (
        c
        for c in of_kind(rendered(f"postgres/overlays/{overlay}"), "Cluster")
        if c["metadata"]["name"] == f"tollkeeper-{service}-db"
    )
    assert cluster["spec"]["bootstrap"]["initdb"]["database"] == f"tollkeeper_{service}"
    assert cluster["spec"]["bootstrap"]["initdb"]["owner"] == f"tollkeeper_{service}"
    for each_workload in workloads(service, overlay):
        variables = environment(parts(service, overlay), each_workload)
        assert variables[f"TOLLKEEPER_{service.upper()}_DATABASE_URL"] == f"secret:tollkeeper-{service}-db-app/uri"
        secrets = [
            source["secret"]
            for volume in pod(each_workload)["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
            if "secret" in source
        ]
        # Only the certificate: the authority's key lies in the same Secret.
        (authority,) = (s for s in secrets if s["name"] == f"tollkeeper-{service}-db-ca")
        assert [item["key"] for item in authority["items"]] == ["ca.crt"]
        assert variables["PGSSLMODE"] == "verify-full"
