"""Runs steps without a model: ours and each peer's in turns, with the same requests on the same core.

Knows rounds and what is kept equal. Does not know engines (see `benchmarks.peers`) or tables.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.peers.environments import OURS_SCHEDULING, Peer
from benchmarks.peers.loading import load_installed
from benchmarks.peers.protocol import PeerError, Worker
from benchmarks.rounds import in_turn
from benchmarks.scheduling.results import StepsResult, Turn, row_result

_MODEL = "smoke"
"""Some engines take the form of their requests from a model; none computes it."""
_MICROSECONDS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A part of an engine whose time is taken."""

    name: str
    engine: str
    op: str
    goal: float | None = None
    """Our time over its, at most."""


OURS = Row(name="diptych", engine=OURS_SCHEDULING.name, op="step")
ROWS = (
    Row(name="vllm", engine="vllm", op="step", goal=0.3),
    Row(name="vllm, scheduler alone", engine="vllm", op="schedule", goal=0.3),
    Row(name="transformers paged", engine="transformers paged", op="step"),
    Row(name="transformers paged, scheduler alone", engine="transformers paged", op="schedule"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What every engine is asked in each of its turns."""

    context: int
    """Tokens of each prompt."""
    steps: int
    """Behind the prompts, until all begins anew: contexts grow by so many tokens."""
    seconds: float
    """Least time of a turn."""
    rounds: int


def run_steps(
    numbers: Sequence[int], peers: Sequence[Peer], load: Load, *, folder: Path, core: int
) -> Iterator[StepsResult]:
    """Steps of each number of running requests; engines are built once. Raises PeerError where a step fails."""
    model = {"model": str(checkpoints.checkpoint(_MODEL))}
    with ExitStack() as stack:
        engines, not_run = load_installed(
            [OURS_SCHEDULING, *peers], stack, folder=folder, cores=[core], request=lambda _: model
        )
        rows = [row for row in (OURS, *ROWS) if row.engine in engines]
        for running in numbers:
            turns: dict[str, list[Turn]] = {row.name: [] for row in rows}
            for number in range(load.rounds):
                for row in in_turn(rows, number):
                    turns[row.name].append(_turn(engines[row.engine].worker, row.op, running, load))
            sys.stderr.write(f"{running} running are measured\n")
            found = [
                row_result(row.name, engines[row.engine].version, turns[row.name], turns[OURS.name], goal=row.goal)
                for row in rows
            ]
            yield StepsResult(running=running, rows=found, not_run=not_run)


def _turn(worker: Worker, op: str, running: int, load: Load) -> Turn:
    """One engine's steps. Raises PeerError, also where a step did not give every request its token."""
    found = worker.ask(op, running=running, context=load.context, steps=load.steps, seconds=load.seconds)
    if found["tokens"] != found["steps"] * running:
        raise PeerError(f"{found['steps']} steps of {running} requests gave {found['tokens']} tokens")
    scale = _MICROSECONDS / found["steps"]
    return Turn(microseconds=found["seconds"] * scale, processor_microseconds=found["processor_seconds"] * scale)
