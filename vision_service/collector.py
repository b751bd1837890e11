"""The vision service's figures, read when Prometheus asks.

Knows metric names and where their values are. Nothing is computed on the way of an image.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vision_service.decoding.decode_pool import DecodePool
from vision_service.pipeline.batcher import Batcher
from vision_service.pipeline.byte_budget import ByteBudget
from vision_service.pipeline.feature_cache import FeatureCache


class VisionCollector(Collector):
    """Exports what waits, what is kept and what went wrong."""

    def __init__(self, *, budget: ByteBudget, cache: FeatureCache, decode_pool: DecodePool, batcher: Batcher) -> None:
        self._budget = budget
        self._cache = cache
        self._decode_pool = decode_pool
        self._batcher = batcher

    def collect(self) -> Iterator[Metric]:
        """Read everything once; prometheus_client adds `_total` to counters."""
        batcher, pending, counts = self._batcher, self._batcher.pending, self._cache.counts
        for name, help_, value in (
            ("pending_patches", "Patches admitted and not yet encoded.", pending.num_patches),
            ("max_pending_patches", "The most of them.", pending.max_patches),
            ("pending_images", "Images admitted and not yet encoded.", pending.num_images),
            ("decode_waiting", "Those of them that wait for a decode worker.", self._decode_pool.num_waiting),
            ("bytes_in_flight", "Bytes of picture files and features under way.", self._budget.held),
            ("max_bytes_in_flight", "The most of them.", self._budget.limit),
            ("feature_cache_bytes", "Bytes of features kept that nobody reads now.", self._cache.kept_bytes),
            ("feature_cache_entries", "Images whose features are kept and not read now.", self._cache.num_kept),
        ):
            yield GaugeMetricFamily(f"diptych_vision_{name}", help_, value)
        for name, help_, value in (
            ("feature_cache_hits", "Images whose features were there.", counts.hits),
            ("feature_cache_joined", "Images that were being encoded for somebody else.", counts.joined),
            ("feature_cache_misses", "Images that had to be encoded.", counts.misses),
            ("feature_cache_evictions", "Images dropped to make room.", counts.evictions),
            ("images_encoded", "Images encoded.", batcher.num_encoded_images),
            ("encode_batches", "Batches encoded.", batcher.num_batches),
            ("decode_worker_restarts", "Decode workers replaced.", self._decode_pool.num_restarts),
        ):
            yield CounterMetricFamily(f"diptych_vision_{name}", help_, value)
        failures = CounterMetricFamily(
            "diptych_vision_decode_failures", "Images that could not be decoded.", labels=["reason"]
        )
        for reason, count in self._decode_pool.failures.items():
            failures.add_metric([reason], count)
        yield failures
