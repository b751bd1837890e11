"""Services whose contract is older or newer than ours by some fields still understand us, and we them.

The other side's messages are ours as another schema has them: without the fields that came after the first version, or
with fields that nobody here knows.
"""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from common.features.features import FeatureReceiver
from common.server.config import ServerConfig
from common.server.server import GrpcServer
from decoder_service.vision.client import VisionClient
from decoder_service.vision.resolver import VisionResolver
from diptych.v1 import types_pb2
from diptych.v1 import vision_pb2 as pb
from tests.decoder_service.vision.replica_fakes import EXPECTED, FakeReplica, encode, rows_of
from tests.vision_service.running_service import INFO, PICTURE, running

LATER = {
    "EncodeRequest": "shared_memory_token",
    "FeaturesHeader": "shared",
    "FeaturesChunk": "shared_size",
    "VisionServiceGetModelInfoResponse": "shared_memory_socket",
}
"""Fields that the first version of the contract had not."""
UNKNOWN = 1000
"""Number of a field that only a newer version has."""


class OtherSchema:
    """The contract as another version has it."""

    def __init__(self, *, is_newer: bool) -> None:
        self._is_newer = is_newer
        pool = descriptor_pool.DescriptorPool()
        for module in (types_pb2, pb):
            file = descriptor_pb2.FileDescriptorProto()
            module.DESCRIPTOR.CopyToProto(file)
            for message in file.message_type:
                (_add if is_newer else _remove)(message)
            pool.Add(file)
        self._pool = pool

    def rewrite(self, data: bytes, name: str) -> bytes:
        """A message as the other version would send it that means the same, or would keep of what it got."""
        kind: Any = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"diptych.v1.{name}"))
        message: Message = kind.FromString(data)
        message.DiscardUnknownFields()
        if self._is_newer:
            _fill(message)
        return message.SerializeToString()


def _add(message: DescriptorProto) -> None:
    for number, kind in enumerate(("TYPE_STRING", "TYPE_FIXED64", "TYPE_FIXED32", "TYPE_SINT64")):
        field = message.field.add(name=f"later_{number}", number=UNKNOWN + number, label="LABEL_OPTIONAL")
        field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(kind)


def _remove(message: DescriptorProto) -> None:
    name = LATER.get(message.name)
    kept = [field for field in message.field if field.name != name]
    del message.field[:]
    message.field.extend(kept)
    oneofs = [oneof for oneof in message.oneof_decl if oneof.name != f"_{name}"]
    del message.oneof_decl[:]
    message.oneof_decl.extend(oneofs)


def _fill(message: Message) -> None:
    """Give every message in it the fields that are new."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            _fill(value)
    for number, value in enumerate(("new", 7, 7, -7)):
        setattr(message, f"later_{number}", value)


@pytest.fixture(params=["older", "newer"])
def other(request: pytest.FixtureRequest) -> OtherSchema:
    return OtherSchema(is_newer=request.param == "newer")


class OtherReplica(FakeReplica):
    """A vision service of another version."""

    def __init__(self, schema: OtherSchema) -> None:
        super().__init__()
        self._schema = schema

    async def serve(self) -> GrpcServer:
        self.info.shared_memory_socket = "diptych-" + "0" * 32
        server = GrpcServer(ServerConfig(port=0), registry=CollectorRegistry())

        def handler(kind: str, method: Any, request: str, response: str) -> Any:  # noqa: ANN401 - gRPC's own
            return getattr(grpc, f"{kind}_rpc_method_handler")(
                method,
                request_deserializer=lambda data: getattr(pb, request).FromString(self._schema.rewrite(data, request)),
                response_serializer=lambda message: self._schema.rewrite(message.SerializeToString(), response),
            )

        handlers = {
            "Encode": handler("unary_stream", self.Encode, "EncodeRequest", "EncodeResponse"),
            "GetLoad": handler("unary_unary", self.GetLoad, "GetLoadRequest", "GetLoadResponse"),
            "GetModelInfo": handler(
                "unary_unary",
                self.GetModelInfo,
                "VisionServiceGetModelInfoRequest",
                "VisionServiceGetModelInfoResponse",
            ),
        }
        service = grpc.method_handlers_generic_handler("diptych.v1.VisionService", handlers)
        server.grpc.add_generic_rpc_handlers((service,))
        self.address = f"127.0.0.1:{await server.start()}"
        return server


@pytest.fixture
async def replica(other: OtherSchema) -> AsyncIterator[OtherReplica]:
    replica = OtherReplica(other)
    server = await replica.serve()
    yield replica
    await server.grpc.stop(None)


async def test_a_vision_service_of_another_version_serves_our_decoder(replica: OtherReplica) -> None:
    client = VisionClient(VisionResolver([replica.address]), expected=EXPECTED)
    await client.start()
    try:
        await client.wait_ready()
        assert await encode(client) == rows_of()
        assert replica.num_encodes == 1
    finally:
        await client.close()


async def test_a_decoder_of_another_version_is_served_by_our_vision_service(other: OtherSchema) -> None:
    spec = INFO.feature_spec(PICTURE, grid=INFO.preprocessing.patch_grid(100, 60), salt=b"")
    receiver = FeatureReceiver(spec, memoryview(bytearray(spec.num_bytes)))
    request = pb.EncodeRequest(image=PICTURE, request_id="r", shared_memory_token=b"t" * 16)
    async with running() as service:
        sent = pb.EncodeRequest.FromString(other.rewrite(request.SerializeToString(), "EncodeRequest"))
        async for message in service.stub.Encode(sent):
            receiver.receive(other.rewrite(message.SerializeToString(), "EncodeResponse"))
    receiver.finish()


def test_the_other_versions_messages_differ_from_ours(other: OtherSchema) -> None:
    for name, field in LATER.items():
        ours = getattr(pb, name)()
        if name == "FeaturesHeader":
            ours.shared.size = 5
        else:
            setattr(ours, field, {"shared_size": 5, "shared_memory_token": b"t"}.get(field, "name"))
        theirs = other.rewrite(ours.SerializeToString(), name)
        assert theirs != ours.SerializeToString()
        assert len(theirs) == 0 or len(theirs) > len(ours.SerializeToString())
