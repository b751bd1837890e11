"""The vision service's calls: checks a request, takes it from stage to stage, streams the answer.

    header -> admission in patches -> decode pool -> batcher -> features in chunks

Knows messages and the order of the stages. Does not know Pillow, tensors or how a stage works. A caller that
leaves cancels whatever stage its image is in.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from common.errors import InvalidArgumentError
from common.features import EncodeTimings, feature_messages
from common.image_header import read_image_header
from diptych.v1 import vision_pb2 as pb
from diptych.v1 import vision_pb2_grpc
from vision_service.batcher import Batcher
from vision_service.decode_pool import DecodePool
from vision_service.model_info import EncoderInfo

_MAX_SALT_BYTES = 64
_MAX_REQUEST_ID_CHARS = 64

EncodeContext: TypeAlias = "grpc.aio.ServicerContext[pb.EncodeRequest, pb.EncodeResponse]"
InfoContext: TypeAlias = (
    "grpc.aio.ServicerContext[pb.VisionServiceGetModelInfoRequest, pb.VisionServiceGetModelInfoResponse]"
)
LoadContext: TypeAlias = "grpc.aio.ServicerContext[pb.GetLoadRequest, pb.GetLoadResponse]"


class VisionServicer(vision_pb2_grpc.VisionServiceServicer):
    """Serves one encoder."""

    def __init__(self, info: EncoderInfo, *, decode_pool: DecodePool, batcher: Batcher) -> None:
        self._info = info
        self._decode_pool = decode_pool
        self._batcher = batcher

    async def Encode(self, request: pb.EncodeRequest, context: EncodeContext) -> AsyncIterator[pb.EncodeResponse]:
        """Encode one picture and stream its features."""
        _check_length("salt", len(request.salt), _MAX_SALT_BYTES)
        _check_length("request_id", len(request.request_id), _MAX_REQUEST_ID_CHARS)
        loop = asyncio.get_running_loop()
        image = request.image  # Every access makes a copy.
        header = read_image_header(image, self._info.limits, field="image")
        grid = self._info.preprocessing.patch_grid(header.width, header.height)
        with self._batcher.admit(grid.num_patches):
            start = loop.time()
            pixels = await self._decode_pool.decode(image, grid=grid, field="image")
            preprocess_seconds = loop.time() - start
            result = await self._batcher.encode(pixels, num_patches=grid.num_patches)
        # In a thread: a 20 MiB file takes longer to hash than an event loop should stand still.
        spec = await asyncio.to_thread(self._info.feature_spec, image, grid=grid, salt=request.salt)
        timings = EncodeTimings(queue=result.queue_seconds, preprocess=preprocess_seconds, encode=result.encode_seconds)
        digest = self._info.weights_digest
        for message in feature_messages(spec, result.features.rows, weights_digest=digest, timings=timings):
            yield message

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


def _check_length(field: str, length: int, limit: int) -> None:
    if length > limit:
        raise InvalidArgumentError(
            "FIELD_TOO_LONG",
            f"{field} has length {length}; at most {limit} is accepted",
            field=field,
            metadata={"limit": limit, "got": length},
        )
