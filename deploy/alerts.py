"""Wraps the alerts for clusters with the Prometheus operator: `python -m deploy.alerts` writes the PrometheusRule.

Knows both files. Kustomize cannot put one file's content into another object's field, so the result is kept, and a test
holds it to its source.
"""

import sys

import yaml

from deploy.manifests import ROOT, Manifest

ALERTS = ROOT / "deploy" / "monitoring" / "alerts.yaml"
RULE = ROOT / "deploy" / "monitoring" / "prometheus-rule.yaml"
_HEADER = "# Made from alerts.yaml by `python -m deploy.alerts`; change that file, and run it again.\n"


def wrapped() -> str:
    """What RULE must hold."""
    rule: Manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "diptych", "labels": {"app.kubernetes.io/part-of": "diptych"}},
        "spec": yaml.safe_load(ALERTS.read_text(encoding="utf-8")),
    }
    return _HEADER + yaml.safe_dump(rule, sort_keys=False, width=120)


def main() -> None:
    """Write the file anew."""
    RULE.write_text(wrapped(), encoding="utf-8")
    sys.stdout.write(f"{RULE.relative_to(ROOT)} is written\n")


if __name__ == "__main__":
    main()
