"""Table, dashboards, alerts and runbook name each other's things, and Prometheus's own checker agrees."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import monitoring
from tests.monitoring import ALERTS, DASHBOARDS, MONITORING, ROOT, names_in, prometheus_folder

TABLE = monitoring.table()
KNOWN = set(TABLE)


def promtool(*arguments: str | Path, cwd: Path = MONITORING) -> subprocess.CompletedProcess[str]:
    command = [prometheus_folder() / "promtool", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=240, check=False)  # noqa: S603


def test_every_panel_names_metrics_of_the_table_only() -> None:
    for title, query in monitoring.panels():
        assert names_in(query, KNOWN), title
        assert names_in(query, KNOWN) <= KNOWN, title


def test_every_alert_names_metrics_of_the_table_only() -> None:
    for name, rule in monitoring.alerts().items():
        named = names_in(rule["expr"] + rule["annotations"]["description"], KNOWN)
        assert named
        assert named <= KNOWN, name


def test_every_manifest_names_metrics_of_the_table_only() -> None:
    for path, text in monitoring.scaling_texts().items():
        assert {name for name in names_in(text, KNOWN) if name.startswith("diptych_")} <= KNOWN, path


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    used = set().union(*(names_in(query, KNOWN) for _, query in monitoring.panels()))
    used |= set().union(*(names_in(rule["expr"], KNOWN) for rule in monitoring.alerts().values()))
    unused = {name for name, row in TABLE.items() if name not in used and "scaling" not in row.users}
    assert unused == {name for name, row in TABLE.items() if "none" in row.users}


def test_the_table_names_for_each_metric_the_alerts_and_scaling_rules_that_use_it() -> None:
    expected = {
        name: {alert for alert, rule in monitoring.alerts().items() if name in names_in(rule["expr"], KNOWN)}
        for name in TABLE
    }
    assert {name: set(row.users) - {"scaling", "none"} for name, row in TABLE.items()} == expected
    scaled = set().union(*(names_in(text, KNOWN) for text in monitoring.scaling_texts().values())) & KNOWN
    assert {name for name, row in TABLE.items() if "scaling" in row.users} == scaled


def test_a_name_that_is_none_is_found() -> None:
    """The negative control of the three checks above."""
    assert names_in("rate(diptych_nothing_total[5m]) + diptych_kv_blocks", KNOWN) - KNOWN == {"diptych_nothing_total"}
    assert names_in("rate(diptych_iteration_tokens_bucket[5m])", KNOWN) == {"diptych_iteration_tokens"}


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    text = (ROOT / "docs/runbook.md").read_text()
    sections = set(re.findall(r"^## (\w+)$", text, re.MULTILINE))
    assert sections == monitoring.alerts().keys()
    for name, rule in monitoring.alerts().items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert "**Means**" in part
        assert "**Do**" in part or "**do**" in part
    for link in re.findall(r"\]\(#(\w+)\)", text):
        assert link in {name.lower() for name in sections}


def test_flags_that_the_runbook_names_exist() -> None:
    sources = "".join(path.read_text() for path in ROOT.glob("*_service/config.py"))
    for flag in set(re.findall(r"`--([a-z-]+)`", (ROOT / "docs/runbook.md").read_text())):
        assert f"{flag.replace('-', '_')}:" in sources, flag


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_can_be_imported_anywhere(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["id"] is None
    assert board["uid"] == f"diptych-{path.stem}"
    assert {variable["name"] for variable in board["templating"]["list"]} >= {"datasource"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, f"{panel['title']} lies over another"
        assert place["x"] + place["w"] <= 24
        places |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_promtool_accepts_the_rules_and_their_tests() -> None:
    for done in (promtool("check", "rules", ALERTS.name), promtool("test", "rules", "alerts_test.yaml")):
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


def test_every_alert_is_tested_with_what_raises_it_and_with_what_does_not() -> None:
    fires: dict[str, set[bool]] = {}
    for test in yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            fires.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert fires == {name: {True, False} for name in monitoring.alerts()}


def test_a_rule_that_cannot_be_raised_and_one_that_always_is_fail_their_tests(tmp_path: Path) -> None:
    """The negative control: each alert is broken both ways, and each time promtool's test must notice."""
    rules = yaml.safe_load(ALERTS.read_text())
    (tmp_path / "alerts_test.yaml").write_text((MONITORING / "alerts_test.yaml").read_text())
    for expression in ("vector(1) > 2", "vector(1)"):
        broken = json.loads(json.dumps(rules))
        for group in broken["groups"]:
            for rule in group["rules"]:
                rule["expr"] = expression
        (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(broken))
        done = promtool("test", "rules", "alerts_test.yaml", cwd=tmp_path)
        assert done.returncode != 0
        for name in monitoring.alerts():
            assert re.search(
                rf"name: {name} is {'raised' if '2' in expression else 'not raised'}\b", done.stdout + done.stderr
            )
