"""What we did ourselves in a run, for the peers to be held against.

Knows numbers and a JSON file, through which they reach a peer's process.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.answers import Answers


@dataclass(frozen=True, slots=True)
class OwnFigures:
    """Filled while our own cases run; what was not measured is missing."""

    answers: dict[str, Answers] = field(default_factory=dict)
    """By the workload's name"""
    pictures: dict[str, float] = field(default_factory=dict)
    """Pictures a second, by the pack's name"""

    def take(self, document: Mapping[str, Any]) -> None:
        """Add what `asdict` made of figures, or JSON of that."""
        self.answers.update({name: Answers(**each) for name, each in document["answers"].items()})
        self.pictures.update(document["pictures"])

    def write(self, path: Path) -> None:
        """Write all of it."""
        path.write_text(json.dumps(asdict(self)), encoding="ascii")

    @staticmethod
    def read(path: Path) -> "OwnFigures":
        """What was written."""
        figures = OwnFigures()
        figures.take(json.loads(path.read_text(encoding="ascii")))
        return figures
