"""The decoder service's gauges and counters that are read when Prometheus asks.

Knows metric names and where their values are. Nothing of this is counted on the way of a request; what is, is in
`request_metrics`. Called by the threads of the metrics port.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from decoder_service.cache.feature_store import FeatureStore
from decoder_service.engine.admission import Admission
from decoder_service.engine.host import EngineHost
from decoder_service.engine.stats import EngineStats
from decoder_service.vision.arena_guest import Sharing
from decoder_service.vision.replica import VisionReplica
from decoder_service.vision.replica_state import ReplicaState

_PATIENCE = 0.5
"""Seconds that a scrape waits for the end of a step, to read figures that belong together."""


class Encoders(Protocol):
    """What there is to know of the vision replicas (see `vision.client`)."""

    bad_streams: Counter[str]
    num_repeated: int

    @property
    def replicas(self) -> list[VisionReplica]:
        """All that exist."""
        ...


class EngineCollector(Collector):
    """Exports the figures of the engine, of the feature store and of the vision replicas."""

    def __init__(
        self,
        host: EngineHost,
        store: FeatureStore,
        encoders: Encoders | None,
        *,
        admission: Admission,
        block_size: int,
    ) -> None:
        """Take the parts; `encoders` is None for a model that takes no images."""
        self._admission = admission
        self._host = host
        self._store = store
        self._encoders = encoders
        self._block_size = block_size
        self._last = host.stats

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        between_steps = self._host.count_owned_blocks(patience=_PATIENCE)
        stats, num_owned = between_steps or (self._last, None)
        self._last = stats
        yield from _request_metrics(stats)
        yield from _draft_metrics(stats)
        yield from _admission_metrics(self._admission, busy_since=self._host.busy_since)
        yield from _block_metrics(stats, num_owned, self._block_size)
        yield from _prefix_cache_metrics(stats)
        yield from _image_metrics(stats, self._store)
        yield from _replica_metrics(self._encoders)


def _request_metrics(stats: EngineStats) -> Iterator[Metric]:
    yield GaugeMetricFamily("diptych_num_requests_waiting", "Requests without KV blocks.", stats.num_waiting)
    by_reason = GaugeMetricFamily(
        "diptych_num_requests_waiting_by_reason", "The same, by what they wait for.", labels=["reason"]
    )
    for reason, count in stats.waiting_by_reason.items():
        by_reason.add_metric([reason], count)
    yield by_reason
    yield GaugeMetricFamily("diptych_num_requests_running", "Requests with KV blocks.", stats.num_running)
    yield CounterMetricFamily("diptych_num_preemptions", "Requests sent back to wait.", stats.num_preemptions)
    yield CounterMetricFamily("diptych_engine_steps", "Forward passes.", stats.num_steps)
    yield CounterMetricFamily(
        "diptych_engine_steps_ahead", "Steps that began while the one before ran.", stats.num_steps_ahead
    )
    compute = GaugeMetricFamily("diptych_compute_info", "What computes the model; always 1.", labels=["implementation"])
    compute.add_metric([stats.compute], 1)
    yield compute
    yield CounterMetricFamily(
        "diptych_near_ties", "Greedy choices so close that the batch may have decided.", stats.num_near_ties
    )


def _draft_metrics(stats: EngineStats) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "diptych_spec_decode_num_drafts", "Times that a request tried tokens in a step.", stats.num_drafts
    )
    yield CounterMetricFamily("diptych_spec_decode_num_draft_tokens", "Tokens that were tried.", stats.num_draft_tokens)
    yield CounterMetricFamily(
        "diptych_spec_decode_num_accepted_tokens",
        "Tokens that were tried and right, and so were told.",
        stats.num_accepted_tokens,
    )


def _admission_metrics(admission: Admission, *, busy_since: float | None) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "diptych_requests_open", "Requests that were let in and have not ended.", admission.num_requests
    )
    yield GaugeMetricFamily(
        "diptych_waiting_prompt_tokens",
        "Tokens that those that wait may come to, prompts and completions together.",
        admission.num_waiting_tokens,
    )
    yield GaugeMetricFamily("diptych_picture_bytes", "Bytes of the pictures of open requests.", admission.picture_bytes)
    age = 0.0 if busy_since is None else time.monotonic() - busy_since
    yield GaugeMetricFamily(
        "diptych_engine_busy_seconds", "How long the engine has been at its work under way; 0 while idle.", age
    )


def _block_metrics(stats: EngineStats, num_owned: int | None, block_size: int) -> Iterator[Metric]:
    used = 1 - stats.num_free_blocks / stats.num_blocks
    yield GaugeMetricFamily("diptych_kv_cache_usage_perc", "Part of the KV blocks in use, 0 to 1.", used)
    yield InfoMetricFamily(
        "diptych_cache_config",
        "Size of the KV cache.",
        {"block_size": str(block_size), "num_gpu_blocks": str(stats.num_blocks)},
    )
    yield GaugeMetricFamily("diptych_kv_block_size", "Tokens in a KV block.", block_size)
    yield GaugeMetricFamily("diptych_kv_blocks", "KV blocks.", stats.num_blocks)
    yield GaugeMetricFamily(
        "diptych_kv_blocks_free", "KV blocks that nobody owns, known or not.", stats.num_free_blocks
    )
    owned = GaugeMetricFamily("diptych_kv_blocks_owned", "KV blocks in the tables of requests.")
    leaked = GaugeMetricFamily("diptych_kv_blocks_leaked", "KV blocks neither free nor owned; not 0 is a fault.")
    if num_owned is not None:
        owned.add_metric([], num_owned)
        leaked.add_metric([], stats.num_blocks - stats.num_free_blocks - num_owned)
    yield owned
    yield leaked


def _prefix_cache_metrics(stats: EngineStats) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "diptych_prefix_cache_queries", "Tokens of the admitted requests.", stats.num_queried_tokens
    )
    yield CounterMetricFamily(
        "diptych_prefix_cache_hits", "Those that were not computed, but found.", stats.num_hit_tokens
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
    yield GaugeMetricFamily("diptych_image_feature_budget_bytes", "The most of both together.", store.budget_bytes)
    yield CounterMetricFamily("diptych_images_encoded", "Encodings asked of the vision service.", store.num_encoded)
    skipped = CounterMetricFamily(
        "diptych_images_skipped", "Images that were not encoded, by the cache that spared it.", labels=["cache"]
    )
    skipped.add_metric(["prefix"], stats.num_images_covered)
    skipped.add_metric(["features"], store.num_found)
    yield skipped
    yield CounterMetricFamily(
        "diptych_splice_mismatches", "Steps whose image rows did not fit their places.", stats.num_splice_mismatches
    )


def _replica_metrics(encoders: Encoders | None) -> Iterator[Metric]:
    replicas = GaugeMetricFamily(
        "diptych_vision_replicas", "Vision replicas that are known, by state.", labels=["state"]
    )
    states = Counter(replica.state for replica in encoders.replicas) if encoders else Counter[ReplicaState]()
    for state in ReplicaState if encoders else ():
        replicas.add_metric([state.value], states[state])
    yield replicas
    sharing = GaugeMetricFamily(
        "diptych_vision_replicas_sharing_memory",
        "Vision replicas that offer shared memory, by whether it is used.",
        labels=["state"],
    )
    found_sharing = Counter(replica.sharing for replica in encoders.replicas) if encoders else Counter[Sharing | None]()
    for became in Sharing if encoders else ():
        sharing.add_metric([became.value], found_sharing[became])
    yield sharing
    yield CounterMetricFamily(
        "diptych_encode_repeated", "Encodings asked of another replica too.", encoders.num_repeated if encoders else 0
    )
    bad = CounterMetricFamily("diptych_bad_feature_streams", "Streams of features refused.", labels=["reason"])
    found: Mapping[str, int] = encoders.bad_streams if encoders else {}
    for reason in ("EMBED_CORRUPT", "EMBED_INVALID"):
        bad.add_metric([reason], found.get(reason, 0))
    yield bad
