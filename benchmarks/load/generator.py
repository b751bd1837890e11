"""Sends the requests of a load, in an open or a closed loop, and records what each went through.

Knows tasks and time. Does not know what is sent or to whom: `send` does. In an open loop requests are sent when their
time has come, whatever became of the others; in a closed loop so many callers each wait for their own last answer.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from benchmarks.load.records import RequestRecord

Planned = TypeVar("Planned")
Send = Callable[[Planned], Awaitable[RequestRecord]]


async def open_loop(plans: Sequence[Planned], times: Sequence[float], send: Send[Planned]) -> list[RequestRecord]:
    """Send each request at its time, in seconds from now."""
    started_at = time.monotonic()
    sending: list[asyncio.Task[RequestRecord]] = []
    for plan, at in zip(plans, times, strict=True):
        await asyncio.sleep(max(0.0, started_at + at - time.monotonic()))
        sending.append(asyncio.ensure_future(send(plan)))
    return list(await asyncio.gather(*sending))


async def closed_loop(plans: Iterable[Planned], concurrency: int, send: Send[Planned]) -> list[RequestRecord]:
    """Keep so many requests under way until all are done; records are in the order of the plans."""
    records: dict[int, RequestRecord] = {}
    todo = iter(enumerate(plans))

    async def call() -> None:
        for index, plan in todo:
            records[index] = await send(plan)

    await asyncio.gather(*(call() for _ in range(concurrency)))
    return [records[index] for index in sorted(records)]


async def observe(record: RequestRecord, chunks: AsyncIterator[int]) -> RequestRecord:
    """Note when each chunk comes; `chunks` gives the number of tokens in each, and those of none are not noted."""
    try:
        async for num_tokens in chunks:
            if num_tokens:
                record.chunk_times.append(time.monotonic())
                record.output_tokens += num_tokens
    except Exception as error:
        record.error = str(getattr(error, "reason", "") or type(error).__name__)
    record.ended_at = time.monotonic()
    return record
