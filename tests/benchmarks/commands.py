"""Runs commands of the benchmarks, and reads what they found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    """Standard output of `python -m benchmarks`; a process of its own, as commands pin themselves to cores."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'build/gen'}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(path: Path) -> Any:  # noqa: ANN401 - what JSON may be
    document = json.loads(path.read_text())
    assert document["machine"]["packages"]["torch"]
    return document["results"]
