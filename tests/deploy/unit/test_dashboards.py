"""Grafana's dashboards: each is taken up, and shows metrics that there are."""

import json
import re

import pytest
from deploy_manifests import FOLDER, REPOSITORY, of_kind, rendered

FILES = sorted((FOLDER / "observability" / "base" / "dashboards").glob("*.json"))
METRICS = set(re.findall(r"`(tollkeeper_\w+)", (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_panels_show_metrics_that_there_are(file):
    dashboard = json.loads(file.read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            named = set(re.findall(r"tollkeeper_\w+", target["expr"]))
            assert named or re.match(r"sum by \(\w+\) \(up\{", target["expr"])
            for name in named:
                assert {name, re.sub(r"_(bucket|sum|count)$", "", name)} & METRICS, f"{panel['title']}: {name}"


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_panels_show_one_place_at_a_time(file):
    dashboard = json.loads(file.read_text())
    assert "namespace" in {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            metrics = re.findall(r"\b(?:tollkeeper_\w+|up)\b(\{[^}]*\})?", re.sub(r'"[^"]*"', '""', target["expr"]))
            assert metrics
            assert all(selector.startswith('{namespace=~""') for selector in metrics), target["expr"]


def test_dashboards_are_where_grafana_looks_for_them():
    found = of_kind(rendered("observability/overlays/production"), "ConfigMap")
    assert [set(manifest["data"]) for manifest in found] == [{f"tollkeeper-{file.name}" for file in FILES}]
    assert all(manifest["metadata"]["labels"]["grafana_dashboard"] == "1" for manifest in found)
