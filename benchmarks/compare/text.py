"""Runs the text cases: every engine in turns, on the same weights, prompts and cores.

Knows rounds and what is kept equal. Does not know engines (see `benchmarks.peers`) or tables.
"""

import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks import checkpoints
from benchmarks.compare.agreement import agreement
from benchmarks.compare.cases import TextCase, limit_seconds
from benchmarks.compare.conditions import Conditions
from benchmarks.compare.results import CaseResult, engine_result
from benchmarks.compare.turns import Turn, take_turn
from benchmarks.peers.environments import CEILINGS, OURS, Peer
from benchmarks.peers.loading import Loaded, load_installed, noted
from benchmarks.peers.protocol import PeerError
from benchmarks.rounds import in_turn

_CHECKED_TOKENS = 16
_TOLERATED = 0.01
"""Part of the tokens that may be missing or too many: control tokens are lost where an engine answers in text."""


@dataclass(slots=True)
class _Row:
    """An engine in a case."""

    name: str
    engine: Loaded
    tokens: list[list[int]] = field(default_factory=list)
    """Of the prompts that every engine was asked before the rounds."""
    turns: list[Turn] = field(default_factory=list)


def run_text_cases(cases: Sequence[TextCase], peers: Sequence[Peer], conditions: Conditions) -> Iterator[CaseResult]:
    """All cases; engines are loaded once for each model. Raises PeerError where ours fails."""
    for model, dtypes in dict.fromkeys((case.model, case.dtypes) for case in cases):
        of_model = [case for case in cases if (case.model, case.dtypes) == (model, dtypes)]
        asked = [replace(OURS, dtype=conditions.our_dtype), *(peer for peer in peers if peer.dtype in dtypes)]
        with ExitStack() as stack:
            ceilings = stack.enter_context(CEILINGS.start(conditions.folder, conditions.cores))
            engines, not_run = load_installed(
                asked, stack, folder=conditions.folder, cores=conditions.cores, request=partial(_request, of_model)
            )
            for worker in (ceilings, *(engine.worker for engine in engines.values())):
                worker.set_niceness(conditions.niceness)
            for case in of_model:
                limits = ceilings.ask("measure")
                rows = [_Row(name, engine) for name, engine in engines.items()]
                failed = _measure(case, rows, conditions.rounds)
                sys.stderr.write(f"{case.name} is measured\n")
                alive = [row for row in rows if row.name not in failed]
                yield _result(case, alive, limits, len(conditions.cores), not_run | failed)


def _request(cases: Sequence[TextCase], peer: Peer) -> Mapping[str, object]:
    """What a peer is to load for cases of one model."""
    directory = checkpoints.checkpoint(cases[0].model)
    return {
        "model": str(checkpoints.llama_twin(directory) if peer.wants_llama else directory),
        "max_requests": max(case.concurrency for case in cases),
        "max_tokens": max(case.prompt_tokens + case.new_tokens for case in cases),
        "dtype": peer.dtype,
    }


def _measure(case: TextCase, rows: Sequence[_Row], rounds: int) -> dict[str, str]:
    """The same prompts for all, which also warms them for the case, then all in turns, with new prompts each round.

    Returns the peers that failed, and why.
    """
    failed: dict[str, str] = {}
    prompts = checkpoints.random_prompts(case.model, case.concurrency, case.prompt_tokens, seed=1)
    for row in rows:
        with noted(row.name, failed):
            checked = min(case.new_tokens, _CHECKED_TOKENS)
            row.tokens = row.engine.worker.ask("generate", prompts=prompts, max_tokens=checked)["tokens"]
    for number in range(rounds):
        for row in in_turn(rows, number):
            if row.name not in failed:
                with noted(row.name, failed):
                    row.turns.append(take_turn(row.engine.worker, partial(_generate, case, row.engine, number)))
    return failed


def _generate(case: TextCase, engine: Loaded, number: int, repeat: int) -> tuple[int, float]:
    """Counted tokens and seconds. Raises PeerError, also where an engine ended early or went on."""
    # No prompt of one case comes again in another, where an engine with a cache would find it.
    seed = zlib.crc32(case.name.encode()) % 1_000_000 + 1000 * number + repeat
    prompts = checkpoints.random_prompts(case.model, case.concurrency, case.prompt_tokens, seed=seed)
    answer = engine.worker.ask("generate", prompts=prompts, max_tokens=case.new_tokens)
    found, wanted = sum(map(len, answer["tokens"])), case.concurrency * case.new_tokens
    if abs(found - wanted) > _TOLERATED * wanted:
        raise PeerError(f"{found} tokens in place of {wanted}")
    return case.num_tokens if case.counts_prompt else found, answer["seconds"]


def _result(
    case: TextCase, rows: Sequence[_Row], limits: dict[str, float], num_cores: int, not_run: dict[str, str]
) -> CaseResult:
    ours = rows[0]
    seconds = limit_seconds(
        case,
        checkpoints.text_config(case.model),
        bytes_per_weight=2 if checkpoints.has_halves(case.model) else 4,
        bytes_per_second=limits["bytes_per_second"],
        flops=limits["flops"],
    )
    return CaseResult(
        case=case.name,
        cores=num_cores,
        unit="prompt tok/s" if case.counts_prompt else "tok/s",
        limit=case.num_tokens / seconds,
        limit_goal=case.limit_goal,
        ceilings=limits,
        engines=[
            engine_result(
                row.name,
                row.engine.version,
                row.turns,
                ours.turns,
                agreement="" if row is ours else str(agreement(ours.tokens, row.tokens)),
                goal=case.goals.get(row.name),
            )
            for row in rows
        ],
        not_run=not_run,
    )
