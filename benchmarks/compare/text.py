"""Runs the text cases: every engine in turns, on the same weights, prompts and cores.

Knows rounds and what is kept equal. Does not know engines (see `benchmarks.peers`) or tables.
"""

import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import checkpoints
from benchmarks.compare.agreement import agreement
from benchmarks.compare.cases import TextCase, limit_seconds
from benchmarks.compare.conditions import Conditions
from benchmarks.compare.results import CaseResult, EngineResult
from benchmarks.peers.environments import CEILINGS, OURS, Peer
from benchmarks.peers.protocol import PeerError, Worker
from benchmarks.statistics import Spread, percentile

_CHECKED_TOKENS = 16
_ROUND_SECONDS = 0.5
"""An engine's turn in a round: short requests are repeated until so much time is measured."""


@dataclass(slots=True)
class _Running:
    """An engine that is loaded, and what its rounds gave."""

    peer: Peer
    worker: Worker
    version: str
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    """Of the prompts that every engine was asked before the rounds."""


def run_text_cases(cases: Sequence[TextCase], peers: Sequence[Peer], conditions: Conditions) -> Iterator[CaseResult]:
    """All cases; engines are loaded once for each model."""
    for model, dtypes in dict.fromkeys((case.model, case.dtypes) for case in cases):
        of_model = [case for case in cases if (case.model, case.dtypes) == (model, dtypes)]
        asked = [peer for peer in peers if peer.dtype in dtypes]
        with ExitStack() as workers:
            ceilings = workers.enter_context(CEILINGS.start(conditions.folder, conditions.cores))
            engines, not_run = _load(of_model, asked, conditions, workers)
            with conditions.quietly():
                for worker in (ceilings, *(engine.worker for engine in engines)):
                    worker.set_niceness(conditions.niceness)
                for case in of_model:
                    limits = ceilings.ask("measure")
                    failed = _check(case, engines)
                    failed |= _measure(
                        case, [each for each in engines if each.peer.name not in failed], conditions.rounds
                    )
                    alive = [engine for engine in engines if engine.peer.name not in failed]
                    sys.stderr.write(f"{case.name} is measured\n")
                    yield _result(case, alive, limits, len(conditions.cores), not_run | failed)


def _load(
    cases: Sequence[TextCase], peers: Sequence[Peer], conditions: Conditions, workers: ExitStack
) -> tuple[list[_Running], dict[str, str]]:
    """Start and load ourselves and every peer that is installed; the cases are of one model."""
    running, not_run = [], {}
    directory = checkpoints.checkpoint(cases[0].model)
    for peer in (replace(OURS, dtype=conditions.our_dtype), *peers):
        if peer.python(conditions.folder) is None:
            not_run[peer.name] = "not installed"
            continue
        worker = workers.enter_context(peer.start(conditions.folder, conditions.cores))
        try:
            loaded = worker.ask(
                "load",
                model=str(checkpoints.llama_twin(directory) if peer.wants_llama else directory),
                max_requests=max(case.concurrency for case in cases),
                max_tokens=max(case.prompt_tokens + case.new_tokens for case in cases),
                dtype=peer.dtype,
            )
        except PeerError as error:
            not_run[peer.name] = str(error)
            continue
        sys.stderr.write(f"{peer.name} has loaded {directory.name}\n")
        running.append(_Running(peer, worker, loaded["version"]))
    return running, not_run


def _check(case: TextCase, engines: Sequence[_Running]) -> dict[str, str]:
    """Ask every engine the same prompts, which also warms it for the case; returns those that failed, and why."""
    prompts = checkpoints.random_prompts(case.model, case.concurrency, case.prompt_tokens, seed=1)
    failed = {}
    for engine in engines:
        try:
            answer = engine.worker.ask("generate", prompts=prompts, max_tokens=min(case.new_tokens, _CHECKED_TOKENS))
            engine.tokens = answer["tokens"]
        except PeerError as error:
            failed[engine.peer.name] = str(error)
    return failed


def _measure(case: TextCase, engines: Sequence[_Running], rounds: int) -> dict[str, str]:
    """Every engine once a round, each round with new prompts and beginning with another engine.

    Returns the peers that failed, and why; ours may not. Raises PeerError.
    """
    failed: dict[str, str] = {}
    for engine in engines:
        engine.rates, engine.costs = [], []
    for number in range(rounds):
        first = number % len(engines)
        for engine in (*engines[first:], *engines[:first]):
            try:
                if engine.peer.name not in failed:
                    _take_turn(case, engine, number)
            except PeerError as error:
                if engine.peer.name == OURS.name:
                    raise
                failed[engine.peer.name] = str(error)
    return failed


def _take_turn(case: TextCase, engine: _Running, number: int) -> None:
    before, seconds, num_tokens, repeat = engine.worker.processor_seconds(), 0.0, 0, 0
    while seconds < _ROUND_SECONDS:
        # No prompt of one case comes again in another, where an engine with a cache would find it.
        seed = zlib.crc32(case.name.encode()) % 1_000_000 + 1000 * number + repeat
        prompts = checkpoints.random_prompts(case.model, case.concurrency, case.prompt_tokens, seed=seed)
        answer: dict[str, Any] = engine.worker.ask("generate", prompts=prompts, max_tokens=case.new_tokens)
        seconds += answer["seconds"]
        num_tokens += case.num_tokens if case.counts_prompt else sum(map(len, answer["tokens"]))
        repeat += 1
    engine.rates.append(num_tokens / seconds)
    engine.costs.append((engine.worker.processor_seconds() - before) * 1000 / num_tokens)


def _result(
    case: TextCase, engines: Sequence[_Running], limits: dict[str, float], num_cores: int, not_run: dict[str, str]
) -> CaseResult:
    ours = next(engine for engine in engines if engine.peer.name == OURS.name)
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
        engines=[_engine_result(case, engine, ours) for engine in engines],
        not_run=not_run,
    )


def _engine_result(case: TextCase, engine: _Running, ours: _Running) -> EngineResult:
    is_peer = engine is not ours
    ratios = [mine / its for mine, its in zip(ours.rates, engine.rates, strict=True)]
    return EngineResult(
        engine=engine.peer.name,
        version=engine.version,
        rate=Spread.of(engine.rates),
        processor_seconds=percentile(engine.costs, 50),
        agreement=str(agreement(ours.tokens, engine.tokens)) if is_peer else "",
        ratio=percentile(ratios, 50) if is_peer else None,
        ratio_goal=case.goals.get(engine.peer.name),
    )
