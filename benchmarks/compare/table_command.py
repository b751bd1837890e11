"""`python -m benchmarks table FILE,...`: one Markdown table of several comparisons.

Knows the files that `compare` writes. Does not measure.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.results import CaseResult, EngineResult, table
from benchmarks.statistics import Spread
from common.settings.settings import from_arguments, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """What to join."""

    files: tuple[str, ...] = setting(help="files that `compare --json` wrote, with commas")


def run(options: argparse.Namespace) -> int:
    """Print where and when each was measured, and the table of all; 2 where a file is none of ours."""
    config = from_arguments(TableConfig, options)
    results: list[CaseResult] = []
    try:
        for file in config.files:
            document = json.loads(Path(file).read_text())
            results += map(case_result, document["results"])
            sys.stdout.write(f"{document['machine']['date']}: {' '.join(document['command'])}\n")
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"table: {error!r}\n")
        return 2
    sys.stdout.write(f"\n{table(results)}\n")
    return 0


def case_result(document: dict[str, Any]) -> CaseResult:
    """A record from its JSON."""
    engines = [EngineResult(**{**each, "rate": Spread(**each["rate"])}) for each in document["engines"]]
    return CaseResult(**{**document, "engines": engines})
