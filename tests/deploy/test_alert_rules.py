"""Each alert is about metrics that exist, fires when it should, and has a runbook that says what to do."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from deploy_manifests import of_kind, rendered

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "deploy/kubernetes/observability/base/rules").glob("*.yaml"))
DASHBOARDS = sorted((ROOT / "deploy/kubernetes/observability/base/dashboards").glob("*.json"))
FILES = [path for path in RULES if path.name != "kustomization.yaml"]
SCENARIOS = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
METRICS = (ROOT / "docs/reference/metrics.md").read_text()
# What others give: Prometheus itself, Envoy, CloudNativePG and its plugin for backups, kubelet.
FOREIGN = {
    "up",
    "envoy_cluster_upstream_rq_pending_overflow",
    "envoy_http_downstream_rq_xx",
    "envoy_http_rq_overload_local_reply",
    "envoy_listener_downstream_global_cx_overflow",
    "envoy_server_days_until_first_cert_expiring",
    "barman_cloud_cloudnative_pg_io_last_available_backup_timestamp",
    "cnpg_backends_total",
    "cnpg_collector_pg_wal_archive_status",
    "cnpg_pg_replication_streaming_replicas",
    "cnpg_pg_settings_setting",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
}
ALERTS = [
    (path.stem, rule)
    for path in FILES
    for group in yaml.safe_load(path.read_text())["spec"]["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
by_name = pytest.mark.parametrize(("page", "rule"), ALERTS, ids=[rule["alert"] for _, rule in ALERTS])


@by_name
def test_alert_has_a_runbook_and_says_how_bad_it_is(page, rule):
    runbooks = (ROOT / f"docs/operating/{page}.md").read_text().splitlines()
    assert f"### {rule['alert']}" in runbooks
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"]


def plain(expression: str) -> str:
    """An expression without its selectors and ranges."""
    return re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expression)


@by_name
def test_alert_is_about_metrics_that_exist(page, rule):
    named = set(
        re.findall(r"\b(?:up|[a-z]+(?:_[a-z0-9]+){2,})\b", re.sub(r"\b(by|on) \([^)]*\)", "", plain(rule["expr"])))
    )
    named -= {"max_over_time"}
    assert named
    kept = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named - FOREIGN}
    assert {name for name in kept if f"`{name}" not in METRICS} == set()


@by_name
def test_alert_mixes_no_place_with_another_and_says_whose_it_is(page, rule):
    """One Prometheus may watch dev and production; it adds the label `namespace` to what it scrapes."""
    expression = plain(rule["expr"])
    if "absent" in expression:
        assert re.match(r'absent\(up\{namespace="tollkeeper",', rule["expr"])
        assert rule["labels"]["namespace"] == "tollkeeper"
        return
    assert not re.search(r"\b(sum|max|min|avg|count|group) ?\(", expression)
    assert all("namespace" in grouping for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression))


def test_the_least_of_what_workers_measure_is_asked_of_workers():
    """A server has the same gauges, and nobody sets them there: its 0 would always be the least."""
    table = (ROOT / "docs/operating/ledger.md").read_text()
    workers = set(re.findall(r"^\| `(\w+)` \| worker \|", table, re.MULTILINE))
    panels = [panel for file in DASHBOARDS for panel in json.loads(file.read_text())["panels"]]
    expressions = [rule["expr"] for _, rule in ALERTS]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    least = [re.findall(r"\bmin(?: by \([^)]*\))? ?\((\w+)(\{[^}]*\})?", expression) for expression in expressions]
    asked = [(name, selector) for found in least for name, selector in found if name in workers]
    assert [name for name, _ in asked] == ["tollkeeper_ledger_months_ahead"] * 2
    assert all('app_kubernetes_io_component="work"' in selector for _, selector in asked), asked


def test_no_runbook_is_left_over():
    known = {rule["alert"] for _, rule in ALERTS}
    written = {
        name
        for path in (ROOT / "docs/operating").glob("*.md")
        for name in re.findall(r"^### (Tollkeeper\w+)$", path.read_text(), re.MULTILINE)
    }
    assert written == known


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_rules_are_what_prometheus_takes(path, tmp_path):
    """With `promtool` where it is installed (Debian: prometheus); else only that each rule has an expression."""
    spec = yaml.safe_load(path.read_text())["spec"]
    assert all(rule["expr"].strip() for group in spec["groups"] for rule in group["rules"])
    promtool = shutil.which("promtool")
    if promtool:
        rules = tmp_path / "rules.yaml"
        rules.write_text(yaml.safe_dump(spec))
        done = subprocess.run(
            [promtool, "check", "rules", rules], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_alerts_fire_when_they_should_and_not_else(path, tmp_path):
    """Scenarios of series and what is told of them, run by `promtool` where it is installed, on production's rules."""
    scenarios = yaml.safe_load(path.read_text())
    told = {case["alertname"] for test in scenarios["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert told <= {rule["alert"] for page, rule in ALERTS if page == path.stem}
    assert all(case["alertname"] in told for test in scenarios["tests"] for case in test["alert_rule_test"])
    for manifest in of_kind(rendered("observability/overlays/production"), "PrometheusRule"):
        (tmp_path / f"{manifest['metadata']['name']}.yaml").write_text(yaml.safe_dump(manifest["spec"]))
    promtool = shutil.which("promtool")
    if promtool:
        copy = shutil.copy(path, tmp_path / f"test-{path.name}")
        done = subprocess.run(
            [promtool, "test", "rules", copy], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("overlay", ["dev", "production"])
def test_each_place_misses_its_own_servers_and_workers(overlay):
    folder = f"observability/overlays/{overlay}"
    (rules,) = (
        m for m in of_kind(rendered(folder), "PrometheusRule") if m["metadata"]["name"] == "tollkeeper-services"
    )
    gone = [r for r in rules["spec"]["groups"][0]["rules"] if r["alert"] == "TollkeeperServiceGone"]
    missed = set()
    for rule in gone:
        labels = dict(re.findall(r'(\w+)="([^"]*)"', rule["expr"]))
        assert labels["namespace"] == rule["labels"]["namespace"] == rules["metadata"]["namespace"]
        assert labels["app_kubernetes_io_name"] == f"tollkeeper-{rule['labels']['part']}"
        assert labels["app_kubernetes_io_component"] == rule["labels"]["component"]
        missed.add((labels["app_kubernetes_io_name"], labels["app_kubernetes_io_component"]))
    watched = [
        (d["spec"]["template"]["metadata"]["labels"], d)
        for d in of_kind(rendered(f"overlays/{overlay}"), "Deployment")
        if any(p["name"] == "metrics" for c in d["spec"]["template"]["spec"]["containers"] for p in c.get("ports", []))
    ]
    assert missed == {(of["app.kubernetes.io/name"], of["app.kubernetes.io/component"]) for of, _ in watched}
