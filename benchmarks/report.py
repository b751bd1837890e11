"""Files of results: JSON with machine, versions, date and command; and what is said of figures that mean nothing.

Knows dataclasses. Does not know what was measured.
"""

import dataclasses
import json
import sys
from pathlib import Path

from benchmarks.hardware import describe

QUICK = "Quick: everything ran at tiny sizes; these figures mean nothing.\n"
"""Printed above the figures of a run with `--quick`."""


def save(path: Path, kind: str, results: object) -> None:
    """Write results, which may hold dataclasses at any depth."""
    document = {"kind": kind, "command": sys.argv[1:], "machine": describe(), "results": results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=_plain) + "\n")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
