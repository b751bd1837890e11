"""Runs the picture cases: ours and each peer's operation in turns, on the same pictures and cores.

Knows rounds and what is kept equal. Does not know engines (see `benchmarks.peers`) or tables.
"""

import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks import checkpoints
from benchmarks.compare.agreement import agreement
from benchmarks.compare.conditions import Conditions
from benchmarks.compare.picture_cases import PictureCase
from benchmarks.compare.results import CaseResult, engine_result
from benchmarks.compare.turns import Turn, take_turn
from benchmarks.operations import encode_flops
from benchmarks.peers.environments import CEILINGS, OURS_VISION, VISION_PEERS, Peer
from benchmarks.peers.loading import Loaded, load_installed, noted
from benchmarks.peers.protocol import Worker
from benchmarks.rounds import in_turn
from common.model.config import PixtralConfig

_TOLERANCE = 1e-3
_NAMES = frozenset(peer.name for peer in VISION_PEERS)


@dataclass(slots=True)
class _Row:
    """One row of the table: an engine's operation."""

    name: str
    engine: Loaded
    op: str
    check: list[Any] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


def run_picture_cases(
    cases: Sequence[PictureCase], peers: Sequence[Peer], conditions: Conditions
) -> Iterator[CaseResult]:
    """All cases, which are of one model. Raises PeerError where ours fails."""
    if not cases:
        return
    with ExitStack() as stack:
        ceilings = stack.enter_context(CEILINGS.start(conditions.folder, conditions.cores))
        asked = {_engine(row) for case in cases for row in case.peer_ops}
        engines, not_run = load_installed(
            [replace(OURS_VISION, dtype=conditions.our_dtype), *(peer for peer in peers if peer.name in asked)],
            stack,
            folder=conditions.folder,
            cores=conditions.cores,
            request=partial(_request, cases[0].model),
        )
        for worker in (ceilings, *(engine.worker for engine in engines.values())):
            worker.set_niceness(conditions.niceness)
        for case in cases:
            ceiling = ceilings.ask("measure")
            rows = [_Row(name, engines[_engine(name)], op) for name, op in _ops(case) if _engine(name) in engines]
            failed = _measure(case, rows, conditions.rounds)
            limit = _limit(case, rows[0].engine.worker, ceiling)
            sys.stderr.write(f"{case.name} is measured\n")
            missing = {name: why for name, why in not_run.items() if name in map(_engine, case.peer_ops)}
            alive = [row for row in rows if row.name not in failed]
            yield _result(case, alive, limit, len(conditions.cores), missing | failed)


def _request(model: str, peer: Peer) -> Mapping[str, object]:
    """What a peer is to load."""
    directory = checkpoints.checkpoint(model)
    path = checkpoints.native_twin(directory) if peer.wants_native else directory
    return {"model": str(path), "max_requests": 8, "max_tokens": 1280, "dtype": peer.dtype}


def _ops(case: PictureCase) -> list[tuple[str, str]]:
    """Rows of the table and what each is asked, ours first."""
    return [(OURS_VISION.name, case.op), *case.peer_ops.items()]


def _engine(row: str) -> str:
    """The engine that a row of the table is about: the one of that name, or of its first word."""
    return row if row in _NAMES else row.partition(" ")[0]


def _measure(case: PictureCase, rows: Sequence[_Row], rounds: int) -> dict[str, str]:
    """The same pictures for all, which also warms them, then all in turns; returns the peers that failed, and why."""
    failed: dict[str, str] = {}
    for row in rows:
        with noted(row.name, failed):
            row.check = row.engine.worker.ask(row.op, **_arguments(case, 1))["check"]
    for number in range(rounds):
        for row in in_turn(rows, number):
            if row.name not in failed:
                with noted(row.name, failed):
                    row.turns.append(take_turn(row.engine.worker, partial(_ask, case, row, number)))
    return failed


def _ask(case: PictureCase, row: _Row, number: int, repeat: int) -> tuple[int, float]:
    """Items and seconds."""
    # No picture or text of one case comes again in another, where an engine with a cache would find it; each request
    # of a call takes a number of its own, from the seed on.
    seed = zlib.crc32(case.name.encode()) % 1_000_000 + 10_000 * number + case.num_items * repeat
    return case.num_items, row.engine.worker.ask(row.op, **_arguments(case, seed))["seconds"]


def _arguments(case: PictureCase, seed: int) -> dict[str, Any]:
    """A seed for what draws its pictures; a file is always the same."""
    return dict(case.arguments) if "path" in case.arguments else {**case.arguments, "seed": seed}


def _limit(case: PictureCase, ours: Worker, ceiling: Mapping[str, float]) -> float | None:
    """Items a second at the limit."""
    if case.limit_op is not None:
        fastest = min(ours.ask(case.limit_op, **case.arguments)["seconds"] for _ in range(5))
        return case.num_items / float(fastest)
    config = checkpoints.MODELS[case.model]
    if case.op != "encode" or not isinstance(config, PixtralConfig):
        return None
    lengths = [width * height // config.vision.patch_size**2 for width, height in case.arguments["sizes"]]
    return case.num_items * ceiling["flops"] / encode_flops(config.vision, lengths)


def _result(
    case: PictureCase, rows: Sequence[_Row], limit: float | None, num_cores: int, not_run: dict[str, str]
) -> CaseResult:
    ours = rows[0]
    return CaseResult(
        case=case.name,
        cores=num_cores,
        unit=case.unit,
        limit=limit,
        limit_goal=case.limit_goal,
        engines=[
            engine_result(
                row.name,
                row.engine.version,
                row.turns,
                ours.turns,
                agreement="" if row is ours else _agreement(ours.check, row.check),
                goal=case.goals.get(row.name),
            )
            for row in rows
        ],
        not_run=not_run,
    )


def _agreement(ours: list[Any], theirs: list[Any]) -> str:
    """Of tokens as elsewhere, of means within a thousandth."""
    if isinstance(ours[0], list):
        return str(agreement(ours, theirs))
    close = sum(math.isclose(mine, its, rel_tol=_TOLERANCE) for mine, its in zip(ours, theirs, strict=True))
    return f"{close}/{len(ours)} pictures"
