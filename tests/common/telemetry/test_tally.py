"""The histogram and the counter of our own, held against prometheus_client's."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from common.calls.reasons import OTHER, ReasonCounter
from common.telemetry.tally import Tally

BOUNDS = (0.001, 0.5, 1.0, 16.0)


@given(st.lists(st.sampled_from((0.0, 0.001, 0.0011, 0.5, 0.7, 1.0, 16.0, 16.5, 1e9))))
def test_a_tally_is_exported_as_the_librarys_histogram_is(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("name", "Help.", bounds=BOUNDS)
    ours.register(tally)
    histogram = Histogram("name", "Help.", buckets=BOUNDS, registry=theirs)
    for value in values:
        tally.observe(value)
        histogram.observe(value)
    lines = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == lines


def test_a_flood_of_reasons_makes_a_bounded_number_of_series() -> None:
    registry = CollectorRegistry()
    counter = ReasonCounter("refused", "Help.", registry=registry)
    counter.count("QUEUE_FULL")
    for index in range(1000):
        counter.count(f"REASON_{index}")
    counter.count('x"} 1\nfaked 1')
    counter.count("QUEUE_FULL")
    samples = {s.labels["reason"]: s.value for s in next(iter(registry.collect())).samples if s.name == "refused_total"}
    assert len(samples) == 65
    assert samples["QUEUE_FULL"] == 2
    assert sum(samples.values()) == 1003
    assert samples[OTHER] == 1003 - 2 - 63
