"""Runs the picture cases: ours and each peer's operation in turns, on the same pictures and cores.

Knows rounds and what is kept equal. Does not know engines (see `benchmarks.peers`) or tables.
"""

import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import checkpoints
from benchmarks.compare.agreement import agreement
from benchmarks.compare.conditions import Conditions
from benchmarks.compare.picture_cases import PictureCase, encode_flops
from benchmarks.compare.results import CaseResult, EngineResult
from benchmarks.peers.environments import CEILINGS, OURS_VISION, VISION_PEERS, Peer
from benchmarks.peers.protocol import PeerError, Worker
from benchmarks.statistics import Spread, percentile
from common.model.config import PixtralConfig

_TOLERANCE = 1e-3
_NAMES = frozenset(peer.name for peer in VISION_PEERS)


@dataclass(slots=True)
class _Entry:
    """One row of the table: an engine's operation."""

    name: str
    worker: Worker
    op: str
    check: list[Any] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)


def run_picture_cases(
    cases: Sequence[PictureCase], peers: Sequence[Peer], conditions: Conditions
) -> Iterator[CaseResult]:
    """All cases, which are of one model."""
    if not cases:
        return
    folder, cores, ours = conditions.folder, conditions.cores, replace(OURS_VISION, dtype=conditions.our_dtype)
    with ExitStack() as stack:
        ceilings = stack.enter_context(CEILINGS.start(folder, cores))
        rows = {_engine(row) for case in cases for row in case.peer_ops}
        asked = [ours, *(peer for peer in peers if peer.name in rows)]
        installed = [peer for peer in asked if peer.python(folder) is not None]
        not_run = {peer.name: "not installed" for peer in asked if peer not in installed}
        workers = {peer.name: stack.enter_context(peer.start(folder, cores)) for peer in installed}
        versions, failed = _load(installed, workers, cases[0].model)
        not_run |= failed
        with conditions.quietly():
            for worker in (ceilings, *workers.values()):
                worker.set_niceness(conditions.niceness)
            for case in cases:
                entries = _entries(case, workers)
                ceiling = ceilings.ask("measure")
                for entry in entries:
                    entry.check = entry.worker.ask(entry.op, **_arguments(case, 1))["check"]
                _measure(case, entries, conditions.rounds)
                limit = _limit(case, workers[OURS_VISION.name], ceiling)
                sys.stderr.write(f"{case.name} is measured\n")
                yield _result(case, entries, versions, limit, len(cores), not_run)


def _load(peers: Sequence[Peer], workers: dict[str, Worker], model: str) -> tuple[dict[str, str], dict[str, str]]:
    """Load the model everywhere; those that cannot are taken out. Returns versions, and who failed and why."""
    versions, failed = {}, {}
    directory = checkpoints.checkpoint(model)
    for peer in peers:
        path = checkpoints.native_twin(directory) if peer.wants_native else directory
        request = {"model": str(path), "max_requests": 8, "max_tokens": 1280, "dtype": peer.dtype}
        try:
            versions[peer.name] = workers[peer.name].ask("load", **request)["version"]
        except PeerError as error:
            failed[peer.name] = str(error)
            del workers[peer.name]
        else:
            sys.stderr.write(f"{peer.name} has loaded {path.name}\n")
    return versions, failed


def _entries(case: PictureCase, workers: Mapping[str, Worker]) -> list[_Entry]:
    ours = _Entry(OURS_VISION.name, workers[OURS_VISION.name], case.op)
    rows = {row: op for row, op in case.peer_ops.items() if _engine(row) in workers}
    return [ours, *(_Entry(row, workers[_engine(row)], op) for row, op in rows.items())]


def _engine(row: str) -> str:
    """The engine that a row of the table is about: the one of that name, or of its first word."""
    return row if row in _NAMES else row.partition(" ")[0]


def _arguments(case: PictureCase, seed: int) -> dict[str, Any]:
    """A seed for what draws its pictures; a file is always the same."""
    return dict(case.arguments) if "path" in case.arguments else {**case.arguments, "seed": seed}


def _measure(case: PictureCase, entries: Sequence[_Entry], rounds: int) -> None:
    # No picture of one case comes again in another, where an engine with a cache would find it.
    seed = zlib.crc32(case.name.encode()) % 1_000_000
    for number in range(rounds):
        first = number % len(entries)
        for entry in (*entries[first:], *entries[:first]):
            before = entry.worker.processor_seconds()
            seconds = entry.worker.ask(entry.op, **_arguments(case, seed + 100 * number))["seconds"]
            entry.rates.append(case.num_items / seconds)
            entry.costs.append((entry.worker.processor_seconds() - before) * 1000 / case.num_items)


def _limit(case: PictureCase, ours: Worker, ceiling: Mapping[str, float]) -> float | None:
    """Items a second at the limit."""
    if case.limit_op is not None:
        fastest = min(ours.ask(case.limit_op, **case.arguments)["seconds"] for _ in range(5))
        return case.num_items / float(fastest)
    config = checkpoints.MODELS[case.model]
    if case.op != "encode" or not isinstance(config, PixtralConfig):
        return None
    return case.num_items * ceiling["flops"] / encode_flops(config, case.arguments["sizes"])


def _result(
    case: PictureCase,
    entries: Sequence[_Entry],
    versions: Mapping[str, str],
    limit: float | None,
    num_cores: int,
    not_run: dict[str, str],
) -> CaseResult:
    ours = entries[0]
    return CaseResult(
        case=case.name,
        cores=num_cores,
        unit=case.unit,
        limit=limit,
        limit_goal=case.limit_goal,
        engines=[
            EngineResult(
                engine=entry.name,
                version=versions[_engine(entry.name)],
                rate=Spread.of(entry.rates),
                processor_seconds=percentile(entry.costs, 50),
                agreement=_agreement(ours.check, entry.check) if entry is not ours else "",
                ratio=None if entry is ours else _median_ratio(ours, entry),
                ratio_goal=case.goals.get(entry.name),
            )
            for entry in entries
        ],
        not_run={engine: reason for engine, reason in not_run.items() if engine in map(_engine, case.peer_ops)},
    )


def _median_ratio(ours: _Entry, entry: _Entry) -> float:
    return percentile([mine / its for mine, its in zip(ours.rates, entry.rates, strict=True)], 50)


def _agreement(ours: list[Any], theirs: list[Any]) -> str:
    """Of tokens as elsewhere, of means within a thousandth."""
    if isinstance(ours[0], list):
        return str(agreement(ours, theirs))
    close = sum(math.isclose(mine, its, rel_tol=_TOLERANCE) for mine, its in zip(ours, theirs, strict=True))
    return f"{close}/{len(ours)} pictures"
