"""Runs the workloads: every engine without tries and with, in turns, on the same weights, prompts and cores.

Knows rounds and what is kept equal. Does not know engines (see `benchmarks.peers`) or tables.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.compare.turns import Turn, take_turn
from benchmarks.peers.environments import OURS, Peer
from benchmarks.peers.loading import Loaded, load_installed, noted
from benchmarks.peers.protocol import PeerError
from benchmarks.rounds import in_turn
from benchmarks.speculation.counting_model import counting_checkpoint
from benchmarks.speculation.workloads import WORKLOADS, counts, prompt_tokens, prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is the same for all engines."""

    model: str
    max_tokens: int
    """Of each completion."""
    rounds: int
    cores: Sequence[int]
    folder: Path
    """The peers' environments."""


@dataclass(slots=True, kw_only=True)
class Row:
    """One engine at one workload."""

    workload: str
    num_requests: int
    engine: str
    num_tries: int
    turns: list[Turn] = field(default_factory=list)
    tried: Mapping[str, int] | None = None
    """Ours alone: steps, tokens tried and those of them that were right, of all rounds."""


@dataclass(frozen=True, slots=True)
class _System:
    name: str
    num_tries: int
    engine: Loaded


def run_workloads(
    numbers: Sequence[int], tries: Sequence[int], peers: Sequence[Peer], load: Load, not_run: dict[str, str]
) -> Iterator[Row]:
    """A row for each workload, number of requests and engine; who cannot run is noted. Raises PeerError for ours."""
    with ExitStack() as stack:
        systems: list[_System] = []
        for peer in (OURS, *peers):
            for num_tries in (0, *tries):
                engines, missing = load_installed(
                    [peer],
                    stack,
                    folder=load.folder,
                    cores=load.cores,
                    request=partial(_request, load, max(numbers), num_tries),
                )
                not_run.update(missing)
                systems += [_System(peer.name, num_tries, engine) for engine in engines.values()]
        for name, other_every in WORKLOADS.items():
            for num_requests in numbers:
                rows = [
                    Row(workload=name, num_requests=num_requests, engine=each.name, num_tries=each.num_tries)
                    for each in systems
                ]
                _measure(other_every, num_requests, list(zip(systems, rows, strict=True)), load, not_run)
                yield from (row for row in rows if row.turns)
                sys.stderr.write(f"{name}, {num_requests} at a time, is measured\n")


def _request(load: Load, max_requests: int, num_tries: int, peer: Peer) -> Mapping[str, object]:
    return {
        "model": str(counting_checkpoint(load.model)),
        "max_requests": max_requests,
        "max_tokens": load.max_tokens + prompt_tokens(load.max_tokens),
        "dtype": peer.dtype,
        "tries": num_tries,
    }


def _measure(
    other_every: int,
    num_requests: int,
    pairs: Sequence[tuple[_System, Row]],
    load: Load,
    not_run: dict[str, str],
) -> None:
    """All in turns, with new prompts each round; the first round only warms up."""
    for number in range(load.rounds + 1):
        for system, row in in_turn(pairs, number):
            with noted(system.name, not_run):
                work = partial(_generate, other_every, num_requests, load, system, number)
                turn = take_turn(system.engine.worker, work)
                if number:
                    row.turns.append(turn)
                if number == 0 and system.name == OURS.name:
                    system.engine.worker.ask("tried")
    for system, row in pairs:
        if system.name == OURS.name:
            row.tried = system.engine.worker.ask("tried")


def _generate(
    other_every: int, num_requests: int, load: Load, system: _System, number: int, repeat: int
) -> tuple[int, float]:
    """Tokens and seconds. Raises PeerError where a completion is not what it must be."""
    given = prompts(
        num_requests,
        number=100 * number + repeat,
        other_every=other_every,
        max_tokens=load.max_tokens,
        vocabulary=checkpoints.text_config(load.model).vocab_size,
    )
    answer = system.engine.worker.ask("generate", prompts=given, max_tokens=load.max_tokens)
    tokens: list[list[int]] = answer["tokens"]
    pairs = zip(given, tokens, strict=True)
    if not all(len(told) == load.max_tokens and counts(prompt, told) for prompt, told in pairs):
        raise PeerError(f"{system.name} with {system.num_tries} tries: a completion does not count on from its prompt")
    return num_requests * load.max_tokens, answer["seconds"]
