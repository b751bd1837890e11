"""The vision service's calls: has a picture encoded, streams the answer.

Knows messages. Does not know what happens to a picture (see `pipeline`), Pillow or tensors.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from typing import Any, TypeAlias

import grpc

from common.features.packing import feature_messages, shared_feature_messages
from diptych.v1 import vision_pb2 as pb
from vision_service.api.arena_door import ArenaDoor, SharedLease
from vision_service.pipeline.pipeline import PictureFeatures, Pipeline

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["VisionService"].full_name

EncodeContext: TypeAlias = "grpc.aio.ServicerContext[pb.EncodeRequest, bytes]"
InfoContext: TypeAlias = (
    "grpc.aio.ServicerContext[pb.VisionServiceGetModelInfoRequest, pb.VisionServiceGetModelInfoResponse]"
)
LoadContext: TypeAlias = "grpc.aio.ServicerContext[pb.GetLoadRequest, pb.GetLoadResponse]"


class VisionServicer:
    """Serves one encoder."""

    def __init__(self, pipeline: Pipeline, *, door: ArenaDoor | None = None) -> None:
        """Serve `pipeline`; features go through the memory behind `door` to readers that have it."""
        self._pipeline = pipeline
        self._door = door

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Register the calls. `Encode` gives its messages as bytes, which saves two copies of every row."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Encode": grpc.unary_stream_rpc_method_handler(
                self.Encode, request_deserializer=pb.EncodeRequest.FromString
            ),
            "GetModelInfo": grpc.unary_unary_rpc_method_handler(
                self.GetModelInfo,
                request_deserializer=pb.VisionServiceGetModelInfoRequest.FromString,
                response_serializer=pb.VisionServiceGetModelInfoResponse.SerializeToString,
            ),
            "GetLoad": grpc.unary_unary_rpc_method_handler(
                self.GetLoad,
                request_deserializer=pb.GetLoadRequest.FromString,
                response_serializer=pb.GetLoadResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def Encode(self, request: pb.EncodeRequest, context: EncodeContext) -> AsyncIterator[bytes]:
        """Encode one picture and stream its features, as messages `EncodeResponse` in bytes."""
        image, salt = request.image, request.salt  # Every access makes a copy.
        async with self._pipeline.features(image, salt=salt, request_id=request.request_id) as features:
            token, num_bytes = request.shared_memory_token, features.spec.num_bytes
            with self._door.lease(token, num_bytes) if self._door and token else nullcontext() as lease:
                digest = self._pipeline.info.weights_digest
                for message in _messages(features, lease, weights_digest=digest):
                    yield message
                if lease is not None:
                    await lease.done.wait()

    async def GetModelInfo(
        self, request: pb.VisionServiceGetModelInfoRequest, context: InfoContext
    ) -> pb.VisionServiceGetModelInfoResponse:
        """Tell what a decoder service must agree with."""
        message = self._pipeline.info.to_wire()
        if self._door is not None:
            message.shared_memory_socket = self._door.name
        return message

    async def GetLoad(self, request: pb.GetLoadRequest, context: LoadContext) -> pb.GetLoadResponse:
        """Tell how much work is waiting here."""
        pending = self._pipeline.batcher.pending
        return pb.GetLoadResponse(
            pending_patches=pending.num_patches,
            pending_images=pending.num_images,
            free_patches=pending.free_patches,
        )


def _messages(features: PictureFeatures, lease: SharedLease | None, *, weights_digest: bytes) -> Iterator[bytes]:
    """The stream of features, with the rows in it or in shared memory."""
    spec, messages, timings = features.spec, features.messages, features.timings
    if lease is None:
        return feature_messages(messages, timings=timings)
    return shared_feature_messages(
        spec, messages, region=lease.to_wire(), write=lease.write, weights_digest=weights_digest, timings=timings
    )
