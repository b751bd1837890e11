"""The decoder service's gauges, read when Prometheus asks.

Knows metric names and where their values are. Nothing is counted on the way of a request.
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from decoder_service.engine import EngineStats


class EngineCollector(Collector):
    """Exports the engine's figures and the bytes that image features take."""

    def __init__(self, stats: Callable[[], EngineStats], feature_bytes: Callable[[], int]) -> None:
        self._stats = stats
        self._feature_bytes = feature_bytes

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        stats = self._stats()
        used = 1 - stats.num_free_blocks / stats.num_blocks
        yield GaugeMetricFamily("diptych_num_requests_waiting", "Requests without KV blocks.", stats.num_waiting)
        yield GaugeMetricFamily("diptych_num_requests_running", "Requests with KV blocks.", stats.num_running)
        yield GaugeMetricFamily("diptych_kv_cache_usage_ratio", "Part of the KV blocks in use, 0 to 1.", used)
        yield GaugeMetricFamily("diptych_kv_blocks", "KV blocks.", stats.num_blocks)
        yield GaugeMetricFamily("diptych_kv_blocks_free", "KV blocks that nobody owns.", stats.num_free_blocks)
        yield GaugeMetricFamily(
            "diptych_image_feature_bytes", "Bytes reserved for image features.", self._feature_bytes()
        )
        yield CounterMetricFamily("diptych_preemptions", "Requests sent back to wait.", stats.num_preemptions)
        yield CounterMetricFamily("diptych_engine_steps", "Forward passes.", stats.num_steps)
