"""What is counted of pictures and of batches.

Knows metric names, buckets and labels, and how a call can end. Does not know the stages of a picture, which
bring their times here. The set is that of SGLang's encoder and what is ours, see docs/metrics.md.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from common.calls.call import Call, current_call
from common.calls.reasons import ReasonCounter
from common.errors import DiptychError, InvalidArgumentError, ResourceExhaustedError
from common.features.features import EncodeTimings

_log = logging.getLogger(__name__)

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_PATCHES: Final = tuple(float(2**power) for power in range(4, 17))
_RATIOS: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 2.0)

STATUSES: Final = ("ok", "rejected", "invalid", "failed", "cancelled")
"""How a call can end: sent whole; no room; not a picture that we take; a fault of ours; the caller left."""


class ImageMetrics:
    """Histograms and counters of the pictures of one process."""

    def __init__(self, registry: CollectorRegistry, *, max_batch_patches: int) -> None:
        def histogram(name: str, help_: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"diptych_vision_{name}", help_, buckets=buckets, registry=registry)

        self._max_batch_patches = max_batch_patches
        self._latency = histogram("request_e2e_latency_seconds", "From a picture's arrival to its last row sent.")
        self._preprocess = histogram("preprocess_seconds", "Waiting for a decode worker, decoding and resizing.")
        self._queue = histogram("queue_wait_seconds", "Waiting for company and for the encoder.")
        self._transfer = histogram("transfer_seconds", "Handing the features to gRPC, a slow reader included.")
        self._forward = histogram("model_forward_seconds", "A forward pass over a batch.")
        self._images = histogram("images_per_batch", "Images of a batch.", _IMAGES)
        self._patches = histogram("patches_per_batch", "Patches of a batch.", _PATCHES)
        self._fill = histogram("batch_fill_ratio", "Patches of a batch over the most of one.", _RATIOS)
        requests = Counter("diptych_vision_requests", "Encode calls that ended, by how.", ["status"], registry=registry)
        self._ended = {status: requests.labels(status) for status in STATUSES}
        self._rejected = ReasonCounter(
            "diptych_vision_admission_rejections",
            "Pictures for which there was no room.",
            registry=registry,
            expected=("ENCODER_QUEUE_FULL", "DECODE_QUEUE_FULL", "ENCODER_MEMORY_FULL", "ENCODER_OUT_OF_MEMORY"),
        )
        self._failed = ReasonCounter(
            "diptych_vision_request_failures",
            "Pictures that are none, and faults of ours.",
            registry=registry,
            expected=("ENCODE_FAILED", "IMAGE_DECODE_FAILED", "DEVICE_LOST", "INTERNAL"),
        )
        self._patches_encoded = Counter("diptych_vision_patches_encoded", "Patches encoded.", registry=registry)
        self._wire_bytes = Counter("diptych_vision_wire_bytes", "Bytes of features sent.", registry=registry)

    def batch_encoded(self, num_images: int, num_patches: int, seconds: float) -> None:
        """Count a forward pass."""
        self._forward.observe(seconds)
        self._images.observe(num_images)
        self._patches.observe(num_patches)
        self._fill.observe(num_patches / self._max_batch_patches)
        self._patches_encoded.inc(num_patches)

    @contextmanager
    def watching(self) -> Iterator["ImageWatch"]:
        """Watch the picture of this call while inside."""
        watch = ImageWatch(self, current_call())
        try:
            yield watch
        except BaseException as error:
            self._count_error(error)
            raise
        self._ended["ok"].inc()

    def encoded(self, watch: "ImageWatch", timings: EncodeTimings | None) -> None:
        """Count the stages of a picture, which are None where its features were there; for `ImageWatch`."""
        if timings is not None:
            self._preprocess.observe(timings.preprocess, watch.call.exemplar)
            self._queue.observe(timings.queue, watch.call.exemplar)

    def sent(self, watch: "ImageWatch", *, num_bytes: int, transfer: float, latency: float) -> None:
        """Count features that are on the wire; for `ImageWatch`."""
        self._wire_bytes.inc(num_bytes)
        self._transfer.observe(transfer, watch.call.exemplar)
        self._latency.observe(latency, watch.call.exemplar)

    def _count_error(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._ended["cancelled"].inc()
        elif isinstance(error, ResourceExhaustedError):
            self._ended["rejected"].inc()
            self._rejected.count(error.reason)
        else:
            self._ended["invalid" if isinstance(error, InvalidArgumentError) else "failed"].inc()
            self._failed.count(error.reason if isinstance(error, DiptychError) else "INTERNAL")


class ImageWatch:
    """One picture, from its arrival to its last row."""

    def __init__(self, metrics: ImageMetrics, call: Call) -> None:
        self.call = call
        self._metrics = metrics
        self._arrived_at = self._encoded_at = time.monotonic()

    def named(self, request_id: str) -> None:
        """Hear which request the picture belongs to."""
        self.call.request_id = request_id

    def encoded(self, timings: EncodeTimings | None) -> None:
        """Hear that the features are there; without timings they were before."""
        self._encoded_at = time.monotonic()
        self._metrics.encoded(self, timings)
        self._trace(timings)

    def sent(self, num_bytes: int) -> None:
        """Hear that the last row has gone."""
        now = time.monotonic()
        self._metrics.sent(self, num_bytes=num_bytes, transfer=now - self._encoded_at, latency=now - self._arrived_at)
        self.call.span.record("transfer", start=self._encoded_at, end=now)
        # The decoder tells of the request at info; what is told of each picture is for whoever looks for it.
        _log.debug("picture sent", extra={"bytes": num_bytes, "seconds": round(now - self._arrived_at, 4)})

    def _trace(self, timings: EncodeTimings | None) -> None:
        span = self.call.span
        span.set({"diptych.request_id": self.call.request_id, "diptych.features_cached": timings is None})
        if timings is None:
            return
        # One after the other, and the features are there when the last is over.
        start = self._encoded_at - timings.encode - timings.queue - timings.preprocess
        for name, seconds in (
            ("preprocess", timings.preprocess),
            ("queue", timings.queue),
            ("forward", timings.encode),
        ):
            span.record(name, start=start, end=start + seconds)
            start += seconds
