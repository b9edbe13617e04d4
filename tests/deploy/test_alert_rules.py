"""Each alert is about metrics that exist, and has a runbook that says what to do."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "deploy/kubernetes/observability/base/rules").glob("*.yaml"))
FILES = [path for path in RULES if path.name != "kustomization.yaml"]
METRICS = (ROOT / "docs/reference/metrics.md").read_text()
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


@by_name
def test_alert_is_about_metrics_that_exist(page, rule):
    named = set(re.findall(r"tollkeeper_\w+", rule["expr"]))
    kept = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert kept or "up{" in rule["expr"]
    assert {name for name in kept if f"`{name}" not in METRICS} == set()


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
