"""Reads our Dockerfile: its stages, its instructions and the command that an image starts.

Knows the little of the format that ours uses: stages, build arguments before the first stage and in it, JSON entry
points, lines that go on after a backslash. Runs nothing; see `deploy.image_steps`.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parent / "docker" / "Dockerfile"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, such as RUN, and what follows it."""

    word: str
    text: str


@dataclass(frozen=True, slots=True)
class Stage:
    """What stands between one FROM and the next."""

    name: str
    parent: str
    """Another stage's name, or an image."""
    instructions: list[Instruction] = field(default_factory=list)

    @property
    def environment(self) -> list[tuple[str, str]]:
        """What ENV sets, in order; a value may name earlier variables."""
        words = [word for step in self.instructions if step.word == "ENV" for word in shlex.split(step.text)]
        return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def read_stages(arguments: Mapping[str, str] | None = None, path: Path = DOCKERFILE) -> dict[str, Stage]:
    """The stages by name, with build arguments filled in where stages are named. `arguments` replaces defaults."""
    given = dict(arguments or {})
    stages: dict[str, Stage] = {}
    for instruction in _instructions(path.read_text(encoding="utf-8")):
        if instruction.word == "FROM":
            parent, _, name = _fill(instruction.text, given).partition(" AS ")
            stages[name] = Stage(name=name, parent=parent)
        elif instruction.word == "ARG" and not stages:
            name, _, default = instruction.text.partition("=")
            given.setdefault(name, default)
        else:
            list(stages.values())[-1].instructions.append(instruction)
    return stages


def lineage(stages: Mapping[str, Stage], name: str) -> list[Stage]:
    """A stage and those it is built on, the first one first."""
    stage = stages[name]
    return [*(lineage(stages, stage.parent) if stage.parent in stages else []), stage]


def entry_point(target: str) -> list[str]:
    """The words that a target's image starts."""
    texts = [
        step.text
        for stage in lineage(read_stages(), target)
        for step in stage.instructions
        if step.word == "ENTRYPOINT"
    ]
    return list(json.loads(texts[-1]))


def image_environment(stages: Mapping[str, Stage], target: str, outer: Mapping[str, str]) -> dict[str, str]:
    """The variables that a target's processes see, above those of `outer`."""
    environment = dict(outer)
    for stage in lineage(stages, target):
        for name, value in stage.environment:
            environment[name] = re.sub(r"\$(\w+)", lambda found: environment.get(found[1], ""), value)
    return environment


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(" ", 1)) for line in joined.splitlines()]


def _fill(text: str, arguments: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], text)
