"""Latencies, throughput and goodput of a load, by the definitions of vLLM's serving benchmark.

Knows records of requests. Does not know how they were sent. The definitions:

    TTFT   first streamed chunk - sending
    E2EL   last streamed chunk - sending
    ITL    gaps between a request's consecutive chunks, pooled over all requests
    TPOT   (E2EL - TTFT) / (output tokens - 1), of requests with more than one output token
    duration             last end - first sending, of all requests; one that failed ends when that is known
    request throughput   requests that ended well / duration
    output throughput    output tokens / duration; total throughput counts prompt tokens too
    goodput              requests a second that meet every limit of the SLO; one token alone counts as TPOT 0

Failed requests are counted and left out of everything else, but not the time that they took: who answers the first
few of a load and refuses the rest has not done those few a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.load.records import RequestRecord
from benchmarks.statistics import deviation, mean, percentile

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A latency over requests or gaps, in milliseconds."""

    mean: float
    deviation: float
    percentiles: Mapping[int, float]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """The figures of latencies in seconds."""
        values = [value * 1000 for value in seconds]
        return cls(
            mean=mean(values),
            deviation=deviation(values),
            percentiles={percent: percentile(values, percent) for percent in PERCENTILES},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits that a good request meets, in milliseconds; None where there is none."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    def is_met(self, record: RequestRecord) -> bool:
        """Whether a request that ended well meets every limit."""
        measured = (
            (self.ttft, time_to_first_token(record)),
            (self.tpot, time_per_output_token(record) or 0.0),
            (self.e2el, end_to_end(record)),
        )
        return all(limit is None or seconds * 1000 <= limit for limit, seconds in measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFigures:
    """All figures of one load."""

    num_completed: int
    num_failed: int
    duration: float
    """Seconds."""
    request_throughput: float
    output_throughput: float
    total_throughput: float
    image_throughput: float
    ttft: Latency
    tpot: Latency
    itl: Latency
    e2el: Latency
    goodput: float | None
    """None without an SLO."""
    errors: Mapping[str, int]


def time_to_first_token(record: RequestRecord) -> float:
    """TTFT in seconds."""
    return record.chunk_times[0] - record.sent_at


def end_to_end(record: RequestRecord) -> float:
    """E2EL in seconds."""
    return record.chunk_times[-1] - record.sent_at


def time_per_output_token(record: RequestRecord) -> float | None:
    """TPOT in seconds; None of a single token."""
    if record.output_tokens < 2:
        return None
    return (end_to_end(record) - time_to_first_token(record)) / (record.output_tokens - 1)


def inter_token_latencies(record: RequestRecord) -> list[float]:
    """ITLs in seconds."""
    return [after - before for before, after in pairwise(record.chunk_times)]


def figures(records: Sequence[RequestRecord], slo: Slo | None = None) -> LoadFigures:
    """The figures of a load of at least one request that ended well. Raises ValueError where there is none."""
    good = [record for record in records if record.succeeded]
    if not good:
        raise ValueError(f"none of {len(records)} requests ended well: {_errors(records)}")
    duration = max(map(_end, records)) - min(record.sent_at for record in records)
    output_tokens = sum(record.output_tokens for record in good)
    prompt_tokens = sum(record.prompt_tokens for record in good)
    return LoadFigures(
        num_completed=len(good),
        num_failed=len(records) - len(good),
        duration=duration,
        request_throughput=len(good) / duration,
        output_throughput=output_tokens / duration,
        total_throughput=(output_tokens + prompt_tokens) / duration,
        image_throughput=sum(record.num_images for record in good) / duration,
        ttft=Latency.of([time_to_first_token(record) for record in good]),
        tpot=Latency.of([tpot for record in good if (tpot := time_per_output_token(record)) is not None]),
        itl=Latency.of([gap for record in good for gap in inter_token_latencies(record)]),
        e2el=Latency.of([end_to_end(record) for record in good]),
        goodput=None if slo is None else sum(map(slo.is_met, good)) / duration,
        errors=_errors(records),
    )


def _end(record: RequestRecord) -> float:
    return record.chunk_times[-1] if record.succeeded else record.ended_at or record.sent_at


def _errors(records: Sequence[RequestRecord]) -> dict[str, int]:
    reasons = [record.error or "no token came" for record in records if not record.succeeded]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}
