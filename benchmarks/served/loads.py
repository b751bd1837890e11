"""The loads of C11, the same for every system: one request at a time, as many as it can take, and Poisson arrivals.

Knows what is asked and in which order. Does not know who answers. A load's requests depend on its seed alone, so
that all systems get the same, and no request of one load comes again in another: no cache finds any.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.checkpoints import text_config
from benchmarks.load.arrivals import arrival_times
from benchmarks.load.figures import figures
from benchmarks.load.generator import closed_loop, open_loop
from benchmarks.load.interference import MIXED
from benchmarks.load.records import RequestRecord
from benchmarks.load.workload import RequestPlan, Span, WorkloadConfig, plan_requests
from benchmarks.served.peers import PICTURE_PEERS, TEXT_PEERS, ServedPeer
from benchmarks.statistics import percentile

CALLERS = 16
"""Of the closed loop that finds a capacity."""
FIRST_PLAIN_TOKEN = 100
_WARM_UP_CALLERS = (1, 2, 4, 8, CALLERS)
"""A first step of so many requests compiles or tunes itself in some systems, for seconds."""
_NUM_UNLOADED = 10
_UNLOADED, _CAPACITY, _WARM_UP, _OPEN = 1, 2, 1000, 2000
"""Seeds."""

Send = Callable[[RequestPlan], Awaitable[RequestRecord]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCase:
    """What is asked of whom."""

    name: str
    model: str
    workload: WorkloadConfig
    peers: tuple[ServedPeer, ...]
    num_requests: int


CASES = (
    ServedCase(name="pictures", model="pixtral", workload=MIXED, peers=PICTURE_PEERS, num_requests=40),
    ServedCase(
        name="text",
        model="small",
        workload=WorkloadConfig(text_tokens=Span(64, 64), output_tokens=Span(64, 64)),
        peers=TEXT_PEERS,
        num_requests=80,
    ),
)


def quick(case: ServedCase) -> ServedCase:
    """The same with a tiny model and few requests, to see that everything runs."""
    model = "smoke-pixtral" if case.workload.images.high else "smoke"
    workload = replace(case.workload, text_tokens=Span(6, 6), output_tokens=Span(4, 4))
    return replace(case, model=model, workload=workload, num_requests=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A system before the open loops."""

    ttft_ms: float
    """Median with one request at a time."""
    tpot_ms: float
    """Likewise."""
    capacity: float
    """Requests a second of a closed loop."""
    prompt_tokens: float
    """Median, by the system's own count."""
    num_failed: int


class Loads:
    """Puts a case's loads on one system at a time."""

    def __init__(self, case: ServedCase, *, limit_seconds: float) -> None:
        """No request may take longer than the limit, whoever is asked."""
        self._case = case
        self._limit = limit_seconds
        self._token_ids = range(FIRST_PLAIN_TOKEN, text_config(case.model).vocab_size)

    async def alone(self, send: Send) -> Alone:
        """Warm up, then find unloaded latencies and the capacity. Raises ValueError where every request failed."""
        count = self._case.num_requests
        for callers in _WARM_UP_CALLERS:
            await self._closed(send, count=callers + 1, callers=callers, seed=_WARM_UP + callers)
        single = await self._closed(send, count=min(count, _NUM_UNLOADED), callers=1, seed=_UNLOADED)
        many = await self._closed(send, count=max(count, 2 * CALLERS), callers=CALLERS, seed=_CAPACITY)
        unloaded = figures(single)
        return Alone(
            ttft_ms=unloaded.ttft.percentiles[50],
            tpot_ms=unloaded.tpot.percentiles[50],
            capacity=figures(many).request_throughput,
            prompt_tokens=percentile([record.prompt_tokens for record in single if record.succeeded], 50),
            num_failed=sum(not record.succeeded for record in [*single, *many]),
        )

    async def open(self, send: Send, *, rate: float, number: int) -> list[RequestRecord]:
        """The open loop of this number, which stands for its requests and for when they come."""
        plans = self._plans(self._case.num_requests, seed=_OPEN + number)
        times = arrival_times(len(plans), rate=rate, burstiness=1.0, seed=number)
        return await open_loop(plans, times, limited(send, self._limit))

    async def _closed(self, send: Send, *, count: int, callers: int, seed: int) -> list[RequestRecord]:
        return await closed_loop(self._plans(count, seed=seed), callers, limited(send, self._limit))

    def _plans(self, count: int, *, seed: int) -> list[RequestPlan]:
        return plan_requests(replace(self._case.workload, seed=seed), count, token_ids=self._token_ids)


def limited(send: Send, seconds: float) -> Send:
    """The same, where a request that takes longer is given up and has failed."""

    async def bounded(plan: RequestPlan) -> RequestRecord:
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                return await send(plan)
        except TimeoutError:
            record = RequestRecord(sent_at=sent_at, num_images=len(plan.images), ended_at=time.monotonic())
            record.error = f"no end after {seconds:g} s"
            return record

    return bounded


_CLEARLY_LOWER = 0.9


def rates(ours: float, peers: Sequence[float]) -> dict[str, float]:
    """Arrivals a second by what they are parts of: of our capacity, and of the best peer's where that is clearly lower.

    Loads that only we can carry would say little of a peer, and loads that it carries with ease little of us.
    """
    capacities = {"ours": ours}
    if peers and max(peers) < _CLEARLY_LOWER * ours:
        capacities["the best peer's"] = max(peers)
    return {f"{part:g} of {whose}": part * capacity for whose, capacity in capacities.items() for part in (0.5, 0.8)}
