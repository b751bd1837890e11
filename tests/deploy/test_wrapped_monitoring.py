"""The alerts and dashboards reach a cluster whole, and scalers ask for metrics that the table of metrics has."""

import json
import re

from deploy.alerts import ALERTS, RULE, wrapped
from deploy.custom_resources import rendered
from deploy.manifests import ROOT, named, of_kind
from deploy.references import scaler_queries
from deploy.try_manifests import wanted_metrics

RENDERED = dict(rendered())
DASHBOARDS = ROOT / "deploy" / "monitoring" / "dashboards"
TABLE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
MAX_CONFIG_MAP_BYTES = 2**20


def test_wrapped_alerts_are_the_alerts() -> None:
    assert RULE.read_text(encoding="utf-8") == wrapped(), "run `python -m deploy.alerts`"


def test_every_alert_is_rendered() -> None:
    names = re.findall(r"^ *- alert: (\w+)$", ALERTS.read_text(encoding="utf-8"), re.MULTILINE)
    rule = named(RENDERED["production"], "PrometheusRule", "diptych")
    assert [alert["alert"] for group in rule["spec"]["groups"] for alert in group["rules"]] == names
    assert names


def test_every_dashboard_is_rendered_and_found_by_grafanas_sidecar() -> None:
    config_map = named(RENDERED["production"], "ConfigMap", "diptych-dashboards")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {name: json.loads(text) for name, text in config_map["data"].items()} == {
        path.name: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS.glob("*.json")
    }
    assert sum(len(text.encode()) for text in config_map["data"].values()) < MAX_CONFIG_MAP_BYTES


def test_metrics_of_scalers_and_pickers_are_in_the_table() -> None:
    scaled = {
        metric
        for manifests in RENDERED.values()
        for scaler in of_kind(manifests, "ScaledObject", "HorizontalPodAutoscaler")
        for query in scaler_queries(scaler)
        for metric in re.findall(r"\bdiptych_\w+", query)
    }
    assert scaled < wanted_metrics()
    for metric in wanted_metrics():
        assert f"`{metric}`" in TABLE
    assert "`diptych_no_such_metric`" not in TABLE
