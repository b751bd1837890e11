"""The figures of a run, printed as they come and written after each, so that a run cut short has said something."""

import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

Row = dict[str, object]


class Report:
    """Rows by the name of what they are about, and the JSON file that holds them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[str, list[Row]] = {}

    def add(self, name: str, rows: Iterable[Row]) -> list[Row]:
        """Take rows while they are made, and return them."""
        print(f"\n{name}", flush=True)
        taken = self._results.setdefault(name, [])
        for row in rows:
            taken.append(row)
            print("  " + "   ".join(f"{key}: {_text(value)}" for key, value in row.items()), flush=True)
            self._path.write_text(json.dumps({"machine": _machine(), "results": self._results}, indent=1))
        return taken


def _machine() -> dict[str, str]:
    machine = {"python": platform.python_version(), "torch": torch.__version__, "command": " ".join(sys.argv)}
    if torch.cuda.is_available():
        import triton

        machine["device"] = torch.cuda.get_device_name(0)
        machine |= {"cuda": str(torch.version.cuda), "triton": triton.__version__}
    return machine


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
