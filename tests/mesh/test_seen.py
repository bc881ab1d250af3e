"""Prometheus rules and the dashboard: well formed, and of metrics that a running mesh exports."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.mesh import ROOT, RunningMesh

RULES = ROOT / "deploy" / "prometheus" / "hivemind.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "hivemind.json"
METRIC = re.compile(r"\bhivemind_[a-z0-9_]+")
RECORDED = re.compile(r"\bhivemind:[a-z0-9_:]+")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions(path: Path) -> Iterator[str]:
    if path == RULES:
        yield from (rule["expr"] for rule in rules())
    else:
        yield from (target["expr"] for panel in panels() for target in panel["targets"])


def exported(mesh: RunningMesh) -> set[str]:
    """Every name that a query may use: families, and the parts of histograms."""
    mesh.wait_ready()  # what no answer needs is started after the first one
    names: set[str] = set()
    for target in json.loads((mesh.home / "run" / "prometheus_targets.json").read_text()):
        path = target["labels"].get("__metrics_path__", "/metrics")
        text = httpx.get(f"http://{target['targets'][0]}{path}", timeout=10).text
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
            names.add(name)
            if kind == "histogram":
                names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return names


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=["rules", "dashboard"])
def test_every_metric_that_is_named_is_scraped_from_a_running_mesh(mesh: RunningMesh, path: Path) -> None:
    named = {name for text in expressions(path) for name in METRIC.findall(text)}

    assert len(named) > 8
    assert named - exported(mesh) == set()


def test_every_rule_is_one_that_prometheus_takes() -> None:
    promtool = shutil.which("promtool")
    if promtool is not None:
        checked = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    for rule in rules():
        assert ("record" in rule) != ("alert" in rule), rule
        assert rule["expr"].count("(") == rule["expr"].count(")"), rule
        if "alert" in rule:
            assert {"expr", "for", "labels", "annotations"} <= rule.keys(), rule
            assert {"summary", "cure"} <= rule["annotations"].keys(), rule


def test_what_an_alert_rests_on_is_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for text in [*expressions(RULES), *expressions(DASHBOARD)] for name in RECORDED.findall(text)}

    assert used
    assert used <= recorded


def test_panels_have_a_place_and_a_name_of_their_own() -> None:
    assert len({p["id"] for p in panels()}) == len({p["title"] for p in panels()}) == len(panels())
    cells = [
        (x, y)
        for p in panels()
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
