"""The decoder service's gauges and counters, read when Prometheus asks.

Knows metric names and where their values are. Nothing is counted on the way of a request.
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from decoder_service.engine_stats import EngineStats
from decoder_service.feature_store import FeatureStore


class EngineCollector(Collector):
    """Exports the figures of the engine and of the feature store."""

    def __init__(self, stats: Callable[[], EngineStats], store: FeatureStore) -> None:
        self._stats = stats
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        stats = self._stats()
        yield from _engine_metrics(stats)
        yield from _prefix_cache_metrics(stats)
        yield from _image_metrics(stats, self._store)


def _engine_metrics(stats: EngineStats) -> Iterator[Metric]:
    used = 1 - stats.num_free_blocks / stats.num_blocks
    yield GaugeMetricFamily("diptych_num_requests_waiting", "Requests without KV blocks.", stats.num_waiting)
    yield GaugeMetricFamily("diptych_num_requests_running", "Requests with KV blocks.", stats.num_running)
    yield GaugeMetricFamily("diptych_kv_cache_usage_ratio", "Part of the KV blocks in use, 0 to 1.", used)
    yield GaugeMetricFamily("diptych_kv_blocks", "KV blocks.", stats.num_blocks)
    yield GaugeMetricFamily(
        "diptych_kv_blocks_free", "KV blocks that nobody owns, known or not.", stats.num_free_blocks
    )
    yield CounterMetricFamily("diptych_preemptions", "Requests sent back to wait.", stats.num_preemptions)
    yield CounterMetricFamily("diptych_engine_steps", "Forward passes.", stats.num_steps)
    yield CounterMetricFamily(
        "diptych_near_ties", "Greedy choices so close that the batch may have decided.", stats.num_near_ties
    )


def _prefix_cache_metrics(stats: EngineStats) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "diptych_prefix_cache_query_tokens", "Tokens of the admitted requests.", stats.num_queried_tokens
    )
    yield CounterMetricFamily(
        "diptych_prefix_cache_hit_tokens", "Those that were not computed, but found.", stats.num_hit_tokens
    )
    yield CounterMetricFamily(
        "diptych_prefix_cache_evicted_blocks", "Known KV blocks that gave way to others.", stats.num_evicted_blocks
    )


def _image_metrics(stats: EngineStats, store: FeatureStore) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "diptych_image_feature_bytes", "Bytes of features on their way or held by requests.", store.bytes_held
    )
    yield GaugeMetricFamily(
        "diptych_image_feature_cached_bytes", "Bytes of features that nobody holds.", store.bytes_cached
    )
    yield CounterMetricFamily("diptych_images_encoded", "Encodings asked of the vision service.", store.num_encoded)
    skipped = CounterMetricFamily(
        "diptych_images_skipped", "Images that were not encoded, by the cache that spared it.", labels=["cache"]
    )
    skipped.add_metric(["prefix"], stats.num_images_covered)
    skipped.add_metric(["features"], store.num_found)
    yield skipped
