"""What names what: the table of docs/metrics.md, dashboards, alerts and manifests; and Prometheus's own programs."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "deploy/monitoring"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
ALERTS = MONITORING / "alerts.yaml"
_NAME = re.compile(r"\b(?:diptych|grpc_server|process|python)_[a-z0-9_]+\b")
_ROW = re.compile(r"\| `([a-z0-9_]+)` \| (\w+) \| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|")


@dataclass(frozen=True)
class Row:
    """One metric of the table."""

    type: str
    labels: frozenset[str]
    unit: str
    meaning: str
    users: frozenset[str]


def table() -> dict[str, Row]:
    """The metrics of docs/metrics.md by the name that is exported."""
    rows = {}
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        found = _ROW.fullmatch(line.strip())
        if found:
            name, type_, labels, unit, meaning, users = (part.strip() for part in found.groups())
            assert name not in rows, f"{name} stands twice in the table"
            rows[name] = Row(type_, _words(labels), unit, meaning, _words(users))
    return rows


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Za-z_]+", text.replace("-", " ")))


def names_in(text: str, known: set[str]) -> set[str]:
    """Metrics that a text names, the parts of a histogram under its own name."""
    names = set()
    for name in _NAME.findall(text):
        whole = re.sub(r"_(bucket|sum|count)$", "", name)
        names.add(whole if whole in known and name not in known else name)
    return names


def panels() -> list[tuple[str, str]]:
    """Title and query of every target of every panel."""
    return [
        (f"{path.stem}: {panel['title']}", target["expr"])
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerting rules by name."""
    return {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}


def scaling_texts() -> dict[str, str]:
    """The manifests, which hold the scaling rules."""
    return {str(path): path.read_text() for path in sorted((ROOT / "deploy/kubernetes").rglob("*.yaml"))}


@cache
def prometheus_folder() -> Path:
    """Where `prometheus` and `promtool` are; skips the test, aloud, where they are not to be had.

    With REQUIRE_PROMETHEUS set, as in CI, that is a failure.
    """
    done = subprocess.run(  # noqa: S603
        [MONITORING / "fetch_prometheus"], capture_output=True, text=True, timeout=100, check=False
    )  # fmt: skip
    if done.returncode == 0:
        return Path(done.stdout.strip())
    reason = f"NOT RUN: Prometheus is not to be had here: {done.stderr.strip()}"
    if os.environ.get("REQUIRE_PROMETHEUS"):
        pytest.fail(reason)
    pytest.skip(reason)
