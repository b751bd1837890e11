"""The figures of a run, printed as they come and written after each, so that a run cut short has said something."""

import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch

Row = dict[str, object]


class Reporting(Protocol):
    """Takes what is found."""

    def add(self, name: str, rows: Iterable[Row]) -> list[Row]:
        """Take rows while they are made, and return them."""
        ...


class Report:
    """Rows by the name of what they are about, and the JSON file that holds them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[str, list[Row]] = {}
        self._last = ""

    def add(self, name: str, rows: Iterable[Row]) -> list[Row]:
        """See `Reporting`."""
        if name != self._last:
            print(f"\n{name}", flush=True)
        self._last = name
        results, taken = self._results.setdefault(name, []), []
        for row in rows:
            taken.append(row)
            results.append(row)
            print("  " + "   ".join(f"{key}: {_text(value)}" for key, value in row.items()), flush=True)
            self._write()
        return taken

    def _write(self) -> None:
        """Whoever is cut short here leaves the file as it was before."""
        aside = self._path.with_name(f"{self._path.name}.part")
        aside.write_text(json.dumps({"machine": _machine(), "results": self._results}, indent=1))
        aside.replace(self._path)


def _machine() -> dict[str, str]:
    machine = {"python": platform.python_version(), "torch": torch.__version__, "command": " ".join(sys.argv)}
    if torch.cuda.is_available():
        import triton

        machine["device"] = torch.cuda.get_device_name(0)
        machine |= {"cuda": str(torch.version.cuda), "triton": triton.__version__}
    return machine


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
