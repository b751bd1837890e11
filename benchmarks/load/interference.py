"""The load of C12: streams of text alone, and the same while requests with pictures come.

Knows what is asked and when, and which gaps count. Does not know who answers. What is asked depends on the number of
the round alone, so that all systems get the same, and nothing comes twice, so that no cache finds any of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count as count_from

from benchmarks.load.figures import Latency, inter_token_latencies, time_to_first_token
from benchmarks.load.generator import closed_loop, open_loop
from benchmarks.load.records import RequestRecord
from benchmarks.load.workload import ImageSize, RequestPlan, Span, WorkloadConfig, plan_requests

SIZES = (ImageSize(256, 256, 0.5), ImageSize(320, 512, 0.5))
"""vLLM's random-mm has (256, 256) and (720, 1280); the larger one is made smaller here for a CPU."""
MIXED = WorkloadConfig(text_tokens=Span(28, 28), output_tokens=Span(32, 32), images=Span(1, 1), image_sizes=SIZES)
TEXT = WorkloadConfig(text_tokens=Span(28, 28), output_tokens=Span(128, 128))
_SEEDS = 1_000_000
"""Of each round: far apart, as every request beside pictures has one of its own."""

Send = Callable[[RequestPlan], Awaitable[RequestRecord]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InterferenceConfig:
    """How much is asked."""

    text: WorkloadConfig = TEXT
    pictures: WorkloadConfig = MIXED
    streams: int = 4
    """Of text, at the same time."""
    num_requests: int = 40
    """Of text alone, and with pictures."""
    pictures_per_second: float = 1.0
    """Requests with a picture, at equal distances."""


def quickly(config: InterferenceConfig) -> InterferenceConfig:
    """The same with few and small requests, to see that everything runs."""
    text, pictures = (
        replace(each, text_tokens=Span(6, 6), output_tokens=Span(4, 4)) for each in (config.text, config.pictures)
    )
    return replace(config, text=text, pictures=pictures, num_requests=6, pictures_per_second=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """What one system did in one round."""

    alone: Sequence[RequestRecord]
    """Of text, with nothing beside it."""
    beside: Sequence[RequestRecord]
    """Of text while pictures came; each goes on to its end, also behind the last picture's."""
    pictures: Sequence[RequestRecord]

    @property
    def itl_alone(self) -> Latency:
        """Gaps between messages of the streams alone."""
        return Latency.of([gap for record in self.alone if record.succeeded for gap in inter_token_latencies(record)])

    @property
    def gaps_beside(self) -> list[float]:
        """Seconds between messages of the streams, up to the end of the last request with a picture."""
        last = max(record.ended_at or record.sent_at for record in self.pictures)
        good = [record for record in self.beside if record.succeeded]
        cut = [replace(record, chunk_times=[time for time in record.chunk_times if time <= last]) for record in good]
        return [gap for record in cut for gap in inter_token_latencies(record)]

    @property
    def itl_beside(self) -> Latency:
        """Of these gaps."""
        return Latency.of(self.gaps_beside)

    @property
    def inflation(self) -> float:
        """P99 of the gaps beside pictures over the same alone."""
        return self.itl_beside.percentiles[99] / self.itl_alone.percentiles[99]

    @property
    def ttft_of_pictures(self) -> Latency:
        """Times to the first token of the requests with pictures."""
        return Latency.of([time_to_first_token(record) for record in self.pictures if record.succeeded])

    @property
    def tokens_in_a_message(self) -> float:
        """Mean of the text's messages; above 1 where several tokens came together, which makes one gap of several."""
        good = [record for record in (*self.alone, *self.beside) if record.succeeded]
        return sum(record.output_tokens for record in good) / sum(len(record.chunk_times) for record in good)

    @property
    def num_failed(self) -> int:
        """Requests of any kind that did not end well."""
        return sum(not record.succeeded for record in (*self.alone, *self.beside, *self.pictures))


async def interfere(send: Send, config: InterferenceConfig, *, token_ids: Sequence[int], number: int) -> Interference:
    """Put the round of this number on a system that is warm.

    Raises ValueError where no request of a kind ended well, or nothing came beside pictures.
    Beside pictures so many streams of text go on until the last picture's request has ended.
    """
    seed = number * _SEEDS

    def plans(workload: WorkloadConfig, count: int, seed: int) -> list[RequestPlan]:
        return plan_requests(replace(workload, seed=seed), count, token_ids=token_ids)

    # Made before they are sent: to make a picture takes the caller's core for milliseconds.
    pictures = plans(config.pictures, config.num_requests, seed + 1)
    times = [place / config.pictures_per_second for place in range(len(pictures))]
    alone = await closed_loop(plans(config.text, config.num_requests, seed + 2), config.streams, send)
    _check(alone)  # Before streams go on without end, each failing at once.
    sending = asyncio.ensure_future(open_loop(pictures, times, send))

    def texts() -> Iterator[RequestPlan]:
        for each in count_from(seed + 3):
            if sending.done():
                break
            yield plans(config.text, 1, each)[0]

    beside = await closed_loop(texts(), config.streams, send)
    found = Interference(alone=alone, beside=beside, pictures=await sending)
    for records in (found.beside, found.pictures):
        _check(records)
    if not found.gaps_beside:
        raise ValueError(
            "no two messages of text came beside pictures: more pictures must be asked for, or fewer a second"
        )
    return found


def _check(records: Sequence[RequestRecord]) -> None:
    if not any(record.succeeded for record in records):
        raise ValueError(f"none of {len(records)} requests ended well: {records[0].error}")
