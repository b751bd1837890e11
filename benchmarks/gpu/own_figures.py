"""What we did ourselves in a run, for the peers to be held against.

Knows numbers and a JSON file, through which they reach a peer's process.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.gpu.answers import Answers


@dataclass(frozen=True, slots=True)
class OwnFigures:
    """Filled while our own cases run; what was not measured is missing."""

    answers: dict[str, Answers] = field(default_factory=dict)
    """By the workload's name"""
    pictures: dict[str, float] = field(default_factory=dict)
    """Pictures a second, by the pack's name"""

    def write(self, path: Path) -> None:
        """Write all of it."""
        path.write_text(json.dumps(asdict(self)), encoding="ascii")

    @staticmethod
    def read(path: Path) -> "OwnFigures":
        """What was written."""
        document = json.loads(path.read_text(encoding="ascii"))
        answers = {name: Answers(**each) for name, each in document["answers"].items()}
        return OwnFigures(answers, document["pictures"])
