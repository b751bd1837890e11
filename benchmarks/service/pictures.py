"""C11: goodput of a running pair under pictures in an open loop.

Knows the loads and the order in which they are put on. Does not know how a load is sent or judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.load.arrivals import arrival_times
from benchmarks.load.figures import LoadFigures, Slo, figures
from benchmarks.load.generator import closed_loop, open_loop
from benchmarks.load.interference import MIXED
from benchmarks.load.prompts import PromptMaker
from benchmarks.load.records import RequestRecord
from benchmarks.load.sender import Sender
from benchmarks.load.workload import RequestPlan, WorkloadConfig, plan_requests
from common.client.client import AsyncDiptychClient

_TTFT_FACTOR, _TPOT_FACTOR = 5, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoopResult:
    """C11 at one rate."""

    capacity: float
    """Requests a second of a closed loop with 16 callers."""
    slo: Slo
    """Five times the unloaded TTFT and twice the unloaded TPOT."""
    part: float
    """Of the capacity, which is the rate."""
    figures: LoadFigures


class PictureLoads:
    """Puts the loads on one running pair."""

    def __init__(self, client: AsyncDiptychClient, prompts: PromptMaker) -> None:
        self._prompts = prompts
        self._sender = Sender(client, prompts)

    async def open_loops(self, parts: Sequence[float], *, count: int) -> list[OpenLoopResult]:
        """C11: find capacity and unloaded latencies, then the open loops."""
        await self._closed(MIXED, 4, callers=2, seed=1)
        unloaded = figures(await self._closed(MIXED, max(count // 4, 2), callers=1, seed=2))
        capacity = figures(await self._closed(MIXED, count, callers=16, seed=3)).request_throughput
        slo = Slo(ttft=_TTFT_FACTOR * unloaded.ttft.percentiles[50], tpot=_TPOT_FACTOR * unloaded.tpot.percentiles[50])
        results = []
        for number, part in enumerate(parts):
            plans = self._plans(MIXED, count, seed=10 + number)
            times = arrival_times(count, rate=part * capacity, burstiness=1.0, seed=number)
            records = await open_loop(plans, times, self._sender.send, _nothing)
            results.append(OpenLoopResult(capacity=capacity, slo=slo, part=part, figures=figures(records, slo)))
        return results

    async def _closed(self, workload: WorkloadConfig, count: int, *, callers: int, seed: int) -> list[RequestRecord]:
        return await closed_loop(self._plans(workload, count, seed=seed), callers, self._sender.send, _nothing)

    def _plans(self, workload: WorkloadConfig, count: int, *, seed: int) -> list[RequestPlan]:
        return plan_requests(replace(workload, seed=seed), count, token_ids=self._prompts.text_token_ids)


def _nothing() -> None:
    """Show no progress."""
