"""The vision service's calls: checks a request, takes it from stage to stage, streams the answer.

    header -> admission in bytes -> feature cache -----------------------------> features in chunks
                                        |                                              ^
                                        '-> admission in patches -> decode pool -> batcher

Knows messages and the order of the stages. Does not know Pillow, tensors or how a stage works. A caller that
leaves cancels whatever stage its image is in.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TypeAlias

import grpc

from common.errors import InvalidArgumentError
from common.features import EncodeTimings, feature_messages
from common.image_header import read_image_header
from common.preprocessing import PatchGrid
from diptych.v1 import vision_pb2 as pb
from diptych.v1 import vision_pb2_grpc
from vision_service.batcher import Batcher, EncodeResult
from vision_service.byte_budget import ByteBudget
from vision_service.decode_pool import DecodePool
from vision_service.feature_cache import FeatureCache
from vision_service.image_metrics import ImageMetrics
from vision_service.model_info import EncoderInfo

_MAX_SALT_BYTES = 64
_MAX_REQUEST_ID_CHARS = 64
_NO_TIMINGS = EncodeTimings(queue=0.0, preprocess=0.0, encode=0.0)
"""Of features that were there."""

EncodeContext: TypeAlias = "grpc.aio.ServicerContext[pb.EncodeRequest, pb.EncodeResponse]"
InfoContext: TypeAlias = (
    "grpc.aio.ServicerContext[pb.VisionServiceGetModelInfoRequest, pb.VisionServiceGetModelInfoResponse]"
)
LoadContext: TypeAlias = "grpc.aio.ServicerContext[pb.GetLoadRequest, pb.GetLoadResponse]"


class VisionServicer(vision_pb2_grpc.VisionServiceServicer):
    """Serves one encoder."""

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
        self._info = info
        self._budget = budget
        self._cache = cache
        self._decode_pool = decode_pool
        self._batcher = batcher
        self._metrics = metrics

    async def Encode(self, request: pb.EncodeRequest, context: EncodeContext) -> AsyncIterator[pb.EncodeResponse]:
        """Encode one picture and stream its features."""
        with self._metrics.watching() as watch:
            _check_length("salt", len(request.salt), _MAX_SALT_BYTES)
            _check_length("request_id", len(request.request_id), _MAX_REQUEST_ID_CHARS)
            watch.named(request.request_id)
            image, salt = request.image, request.salt  # Every access makes a copy.
            header = read_image_header(image, self._info.limits, field="image")
            grid = self._info.preprocessing.patch_grid(header.width, header.height)
            # Twice: the message lives as long as the call does, and so does the copy.
            with self._budget.hold(2 * len(image)):
                # In a thread: a 20 MiB file takes longer to hash than an event loop should stand still.
                spec = await asyncio.to_thread(self._info.feature_spec, image, grid=grid, salt=salt)
                with self._cache.lease(spec, lambda: self._encode(image, grid)) as lease:
                    was_there = lease.has_arrived
                    result = await lease.arrived()
                    timings = _NO_TIMINGS if was_there else _timings(result)
                    watch.encoded(None if was_there else timings)
                    rows, digest = result.features.rows, self._info.weights_digest
                    # Held until the reader has everything: a slow one counts for what it makes us keep.
                    for message in feature_messages(spec, rows, weights_digest=digest, timings=timings):
                        yield message
                    watch.sent(spec.num_bytes)

    async def _encode(self, image: bytes, grid: PatchGrid) -> EncodeResult:
        """Features of one picture that nobody has yet."""
        with self._batcher.admit(grid.num_patches):
            loop = asyncio.get_running_loop()
            start = loop.time()
            pixels = await self._decode_pool.decode(image, grid=grid, field="image")
            seconds = loop.time() - start
            result = await self._batcher.encode(pixels, num_patches=grid.num_patches)
        return replace(result, preprocess_seconds=seconds)

    async def GetModelInfo(
        self, request: pb.VisionServiceGetModelInfoRequest, context: InfoContext
    ) -> pb.VisionServiceGetModelInfoResponse:
        """Tell what a decoder service must agree with."""
        return self._info.to_wire()

    async def GetLoad(self, request: pb.GetLoadRequest, context: LoadContext) -> pb.GetLoadResponse:
        """Tell how much work is waiting here."""
        return pb.GetLoadResponse(
            pending_patches=self._batcher.pending_patches,
            pending_images=self._batcher.pending_images,
            free_patches=self._batcher.free_patches,
        )


def _timings(result: EncodeResult) -> EncodeTimings:
    return EncodeTimings(queue=result.queue_seconds, preprocess=result.preprocess_seconds, encode=result.encode_seconds)


def _check_length(field: str, length: int, limit: int) -> None:
    if length > limit:
        raise InvalidArgumentError(
            "FIELD_TOO_LONG",
            f"{field} has length {length}; at most {limit} is accepted",
            field=field,
            metadata={"limit": limit, "got": length},
        )
