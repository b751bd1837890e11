"""What it costs to count: a token, a request, a step and a scrape.

    python -m benchmarks.observing

Knows the parts that count. Prints one line for each figure, the least of several rounds: everything above it is
somebody else's work on the same cores.
"""

import argparse
import logging
import time
import timeit
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from common.calls.call import Call, handling
from common.telemetry.spans import Span
from common.telemetry.tally import Tally
from common.telemetry.trace_context import TraceContext
from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.timings import Timings
from decoder_service.telemetry.request_metrics import RequestMetrics, StepMetrics
from decoder_service.telemetry.request_watch import watching

_ROUNDS = 7
_TIMINGS = Timings(queue=0.01, encode_wait=0.02, prefill=0.1, decode=1.0)
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    registry = CollectorRegistry()
    requests, steps = RequestMetrics(registry), StepMetrics(registry)
    tally = Tally("tally", "A histogram of ours.", bounds=_BOUNDS)
    histogram = Histogram("histogram", "The library's.", ["label"], buckets=_BOUNDS, registry=CollectorRegistry())
    bound = histogram.labels("value")
    logging.getLogger("decoder_service").setLevel(logging.WARNING)
    _print("a token", lambda: tally.observe(0.021), number=100_000)
    _print("a token, the library's histogram", lambda: bound.observe(0.021), number=20_000)
    _print("the same, looked up by its label", lambda: histogram.labels("value").observe(0.021), number=20_000)
    _print("a step", lambda: steps.observe(64, 64, 0.021), number=20_000)
    _print("a request without a trace, not logged", lambda: _request(requests, Span(None)), number=2000)
    context = TraceContext("ab" * 16, "cd" * 8, sampled=True)
    _print("the same with exemplars", lambda: _request(requests, Span(context)), number=2000)
    _print("a scrape of a decoder's histograms", lambda: generate_latest(registry), number=50)


def _request(metrics: RequestMetrics, span: Span) -> None:
    with handling(Call(span)), watching(metrics) as watch:
        watch.named("request", {})
        watch.admitted(at=time.monotonic(), prompt_tokens=500, num_images=1)
        watch.first_token()
        watch.finished(
            FinishReason.STOP,
            _TIMINGS,
            prompt_tokens=500,
            cached_tokens=0,
            images_not_encoded=0,
            completion_tokens=99,
            timed_tokens=99,
        )


def _print(name: str, work: Callable[[], object], *, number: int) -> None:
    seconds = min(timeit.repeat(work, number=number, repeat=_ROUNDS)) / number
    print(f"{name:42} {seconds * 1e6:10.2f} us")


if __name__ == "__main__":
    main()
