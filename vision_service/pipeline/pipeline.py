"""The way of one picture through the service: from its file to its features.

    header -> admission in bytes -> feature cache -----------------------------> features
                                        |                                           ^
                                        '-> admission in patches -> decode pool -> batcher

Knows the order of the stages. Does not know messages, Pillow, tensors or how a stage works. A caller that leaves
cancels whatever stage its image is in.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace

from common.errors import InvalidArgumentError, UnavailableError
from common.features.feature_spec import FeatureSpec
from common.features.features import EncodeTimings
from common.features.packing import feature_header
from common.image.header import read_image_header
from common.image.preprocessing import PatchGrid
from vision_service.decoding.decode_pool import DecodePool
from vision_service.model.encoded_image import EncodedImage
from vision_service.model.model_info import EncoderInfo
from vision_service.pipeline.batcher import Batcher, EncodeResult
from vision_service.pipeline.byte_budget import ByteBudget
from vision_service.pipeline.feature_cache import FeatureCache
from vision_service.telemetry.image_metrics import ImageMetrics

_MAX_SALT_BYTES = 64
_MAX_REQUEST_ID_CHARS = 64
_SMALL_FILE = 128 << 10
"""Bytes that are hashed in less time than a thread takes to begin."""
_NO_TIMINGS = EncodeTimings(queue=0.0, preprocess=0.0, encode=0.0)
"""Of features that were there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFeatures:
    """Features of one picture."""

    spec: FeatureSpec
    messages: tuple[bytes, ...]
    """The rows, as the messages that carry them."""
    timings: EncodeTimings


class Pipeline:
    """Takes pictures through the stages of one encoder."""

    def __init__(
        self,
        info: EncoderInfo,
        *,
        budget: ByteBudget,
        cache: FeatureCache,
        decode_pool: DecodePool,
        batcher: Batcher,
        metrics: ImageMetrics,
    ) -> None:
        self.info = info
        self.batcher = batcher
        self._budget = budget
        self._cache = cache
        self._decode_pool = decode_pool
        self._metrics = metrics

    @asynccontextmanager
    async def features(self, image: bytes, *, salt: bytes, request_id: str) -> AsyncIterator[PictureFeatures]:
        """Hold the features of a picture file while inside. Raises a DiptychError.

        What they take counts as long: a slow reader counts for what it makes us keep.
        """
        with self._metrics.watching() as watch:
            _check_length("salt", len(salt), _MAX_SALT_BYTES)
            _check_length("request_id", len(request_id), _MAX_REQUEST_ID_CHARS)
            watch.named(request_id)
            header = read_image_header(image, self.info.limits, field="image")
            grid = self.info.preprocessing.patch_grid(header.width, header.height)
            # Twice: the caller's message lives as long as its call does, and so does the copy.
            with self._budget.hold(2 * len(image)):
                spec = await self._spec(image, grid=grid, salt=salt)
                with self._cache.lease(spec, lambda: self._encode(image, spec)) as lease:
                    was_there = lease.has_arrived
                    result = await lease.arrived()
                    timings = _NO_TIMINGS if was_there else result.timings
                    watch.encoded(None if was_there else timings)
                    features = result.features
                    # Of features on the device every caller has a copy of its own.
                    with nullcontext() if features.is_on_host else self._budget.hold(spec.num_bytes):
                        messages = features.messages() if features.is_on_host else await self._fetch(features)
                        yield PictureFeatures(spec=spec, messages=messages, timings=timings)
                    watch.sent(spec.num_bytes)

    async def _fetch(self, features: EncodedImage) -> tuple[bytes, ...]:
        """Features off the device; they may be all that is asked for when it is lost, so that no batch would tell."""
        try:
            return await asyncio.to_thread(features.messages)
        except UnavailableError:
            self.batcher.device_lost.set()
            raise

    async def _spec(self, image: bytes, *, grid: PatchGrid, salt: bytes) -> FeatureSpec:
        if len(image) <= _SMALL_FILE:
            return self.info.feature_spec(image, grid=grid, salt=salt)
        # In a thread: a 20 MiB file takes longer to hash than an event loop should stand still.
        return await asyncio.to_thread(self.info.feature_spec, image, grid=grid, salt=salt)

    async def _encode(self, image: bytes, spec: FeatureSpec) -> EncodeResult:
        """Features of one picture that nobody has yet."""
        with self.batcher.pending.admit(spec.grid.num_patches):
            start = time.monotonic()
            pixels = await self._decode_pool.decode(image, grid=spec.grid, field="image")
            seconds = time.monotonic() - start
            result = await self.batcher.encode(pixels, num_patches=spec.grid.num_patches)
        header = feature_header(spec, weights_digest=self.info.weights_digest)
        timings = replace(result.timings, preprocess=seconds)
        return EncodeResult(features=result.features.headed(header), timings=timings)


def _check_length(field: str, length: int, limit: int) -> None:
    if length > limit:
        raise InvalidArgumentError(
            "FIELD_TOO_LONG",
            f"{field} has length {length}; at most {limit} is accepted",
            field=field,
            metadata={"limit": limit, "got": length},
        )
