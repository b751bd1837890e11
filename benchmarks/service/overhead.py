"""C10: what the services cost. The same prompts by the engine in one process, and through gRPC, in turns.

Knows the two sides and how they are kept equal: the decoder on one core, the caller on another, the scheduler
preferring both as much. Both are started anew several times, as an engine keeps the speed that it has from its start:
of two that run in turns, one's steps may take a tenth longer than the other's until they end. Does not know tables.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import checkpoints
from benchmarks.load.figures import figures, time_to_first_token
from benchmarks.load.generator import closed_loop
from benchmarks.load.pair import running_pair
from benchmarks.load.prompts import PromptMaker
from benchmarks.load.sender import Sender
from benchmarks.load.workload import RequestPlan, Span, WorkloadConfig, plan_requests
from benchmarks.peers.environments import OURS
from benchmarks.peers.protocol import Worker
from benchmarks.statistics import Spread, percentile
from common.client.client import AsyncDiptychClient

_TOKENS = 64
"""Of every prompt and of every answer."""
_WORKLOAD = WorkloadConfig(text_tokens=Span(_TOKENS - 1, _TOKENS - 1), output_tokens=Span(_TOKENS, _TOKENS))
_ONE_TOKEN = replace(_WORKLOAD, output_tokens=Span(1, 1))
_FIRSTS = 8
"""Requests whose first tokens are timed in a round: a single one says more of the machine than of the services."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Medians over the rounds of one start."""

    in_process_rate: float
    """Tokens a second of the engine alone."""
    service_rate: float
    """Tokens a second through the service."""
    rate_ratio: float
    added_ttft_ms: float | None
    """Of one request at a time; None for several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadResult:
    """What the starts found, each a value of its own."""

    concurrency: int
    in_process_rate: Spread
    service_rate: Spread
    rate_ratio: Spread
    added_ttft_ms: Spread | None

    @classmethod
    def of(cls, concurrency: int, starts: Sequence[Found]) -> "OverheadResult":
        """The result of at least one start."""
        added = [found.added_ttft_ms for found in starts if found.added_ttft_ms is not None]
        return cls(
            concurrency=concurrency,
            in_process_rate=Spread.of([found.in_process_rate for found in starts]),
            service_rate=Spread.of([found.service_rate for found in starts]),
            rate_ratio=Spread.of([found.rate_ratio for found in starts]),
            added_ttft_ms=Spread.of(added) if added else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """How both sides are run."""

    model: str
    dtype: str
    """That both compute in."""
    engine_core: int
    service_cores: Sequence[int]
    flags: Sequence[str]
    """Of the services."""
    log: Path


def measure_overhead(sides: Sides, concurrencies: Sequence[int], *, starts: int, rounds: int) -> list[OverheadResult]:
    """Compare the two sides at each concurrency; all requests of a round are sent at once."""
    found = [_start(sides, concurrencies, rounds) for _ in range(starts)]
    return [OverheadResult.of(concurrency, each) for concurrency, *each in zip(concurrencies, *found, strict=True)]


def _start(sides: Sides, concurrencies: Sequence[int], rounds: int) -> list[Found]:
    """What one start of both sides finds at each concurrency."""
    directory = checkpoints.checkpoint(sides.model)
    flags = ("--dtype", sides.dtype, *sides.flags)
    with (
        OURS.start(Path(), [sides.engine_core]) as engine,
        running_pair(directory, cores=sides.service_cores, log=sides.log, flags=flags) as pair,
    ):
        engine.prefer_as_ourselves()
        size = {"max_requests": max(concurrencies), "max_tokens": 2 * _TOKENS}
        engine.ask("load", model=str(directory), dtype=sides.dtype, **size)
        return [asyncio.run(_compare(engine, pair.address, concurrency, rounds)) for concurrency in concurrencies]


async def _compare(engine: Worker, address: str, concurrency: int, rounds: int) -> Found:
    alone, served, added, ratios = [], [], [], []
    async with AsyncDiptychClient(address) as client:
        prompts = PromptMaker(client, await client.get_model_info(timeout=60))
        sender = Sender(client, prompts)
        for number in range(rounds + 1):
            plans, firsts = round_plans(concurrency, number, prompts.text_token_ids)
            found = figures(await closed_loop(plans, concurrency, sender.send))
            if found.num_failed:
                raise ValueError(f"{found.num_failed} of {concurrency} requests failed: {found.errors}")
            # Right behind a load on either side, so that neither's code has to come from memory.
            served_firsts = [time_to_first_token(await sender.send(first)) for first in firsts]
            answer = engine.ask("generate", prompts=[_ids(plan) for plan in plans], max_tokens=_TOKENS)
            alone_firsts = [_first_token_seconds(engine, first) for first in firsts]
            if number == 0:
                continue  # To warm both.
            served.append(found.output_throughput)
            alone.append(concurrency * _TOKENS / answer["seconds"])
            ratios.append(served[-1] / alone[-1])
            added += [one - other for one, other in zip(served_firsts, alone_firsts, strict=True)]
    return Found(
        in_process_rate=percentile(alone, 50),
        service_rate=percentile(served, 50),
        rate_ratio=percentile(ratios, 50),
        added_ttft_ms=percentile(added, 50) * 1000 if added else None,
    )


def round_plans(concurrency: int, number: int, token_ids: Sequence[int]) -> tuple[list[RequestPlan], list[RequestPlan]]:
    """The requests of a round, and those whose first tokens are timed behind them, one after another.

    None comes again in another round or at another concurrency: the two sides' prefix caches are not equally large.
    """
    seed = 2 * (1000 * concurrency + number)
    plans = plan_requests(replace(_WORKLOAD, seed=seed), concurrency, token_ids=token_ids)
    num_firsts = _FIRSTS if concurrency == 1 else 0
    return plans, plan_requests(replace(_ONE_TOKEN, seed=seed + 1), num_firsts, token_ids=token_ids)


def _first_token_seconds(engine: Worker, plan: RequestPlan) -> float:
    answer: dict[str, Any] = engine.ask("generate", prompts=[_ids(plan)], max_tokens=1)
    seconds: float = answer["seconds"]
    return seconds


def _ids(plan: RequestPlan) -> list[int]:
    return [1, *plan.text_token_ids]
