"""Vision services without a model, and clients of them."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext

import pytest
from prometheus_client import CollectorRegistry

from common.errors import (
    DiptychError,
)
from common.features.feature_spec import FeatureSpec
from common.features.features import EncodeTimings
from common.features.packing import feature_header, feature_messages, pack_rows, shared_feature_messages
from common.features.shared_memory import SharedArena
from common.features.wire_types import preprocessing_to_proto
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid, PreprocessingMode
from common.server.config import ServerConfig
from common.server.server import GrpcServer
from decoder_service.vision.agreement import Expected
from decoder_service.vision.client import VisionClient
from decoder_service.vision.replica_state import ReplicaState
from decoder_service.vision.resolver import VisionResolver
from decoder_service.vision.router import VisionRouter
from diptych.v1 import types_pb2, vision_pb2_grpc
from diptych.v1 import vision_pb2 as pb
from tests.pictures import preprocessing
from tests.waiting import until
from vision_service.api.arena_door import ArenaDoor

DIGEST = b"d" * 32
WIDTH = 1024
EXPECTED = Expected(weights_digest=DIGEST, feature_width=WIDTH)
GRID = PatchGrid(40, 45)
"""Three chunks and a half."""
SMALL = PatchGrid(2, 2)
TIMINGS = EncodeTimings(queue=0, preprocess=0, encode=0)

Behaviour = Callable[[list[pb.EncodeResponse]], AsyncIterator[pb.EncodeResponse]]


def spec_of(name: bytes = b"h", grid: PatchGrid = GRID) -> FeatureSpec:
    return FeatureSpec(image_hash=ImageHash(name * 32), grid=grid, width=WIDTH, dtype="float32")


def rows_of(name: bytes = b"h", grid: PatchGrid = GRID) -> bytes:
    return name * spec_of(name, grid).num_bytes


async def well(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
    for message in messages:
        yield message


async def corrupt(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
    messages[2].chunk.crc32 ^= 1
    for message in messages:
        yield message


async def forever(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
    yield messages[0]
    yield messages[1]
    await asyncio.sleep(60)


async def another_image(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
    messages[0].header.image_hash = b"x" * 32
    for message in messages:
        yield message


def failing(error: DiptychError, *, after: int = 0) -> Behaviour:
    async def fail(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
        for message in messages[:after]:
            yield message
        raise error

    return fail


SHARES: list[bool] = []


class FakeReplica(vision_pb2_grpc.VisionServiceServicer):
    """A vision service without a model: the image's first byte fills its features."""

    def __init__(self, behaviour: Behaviour = well, *, grid: PatchGrid = GRID) -> None:
        self.behaviour = behaviour
        self.grid = grid
        self.num_encodes = 0
        self.num_cancelled = 0
        self.pending_patches = 0
        self.info = pb.VisionServiceGetModelInfoResponse(
            api_version="2.7",
            weights_digest=DIGEST,
            preprocessing=preprocessing_to_proto(preprocessing(PreprocessingMode.HF)),
            feature_width=WIDTH,
            dtype=types_pb2.DTYPE_FLOAT32,
            max_image_bytes=100,
            max_image_pixels=200,
            max_patches=4096,
        )
        self.host = "127.0.0.1"
        self.address = "127.0.0.1:0"
        self._server: GrpcServer | None = None
        self._door: ArenaDoor | None = None

    async def Encode(self, request: pb.EncodeRequest, context: object) -> AsyncIterator[pb.EncodeResponse]:
        self.num_encodes += 1
        name = request.image[:1]
        spec = spec_of(name, self.grid)
        packed = pack_rows(memoryview(rows_of(name, self.grid)), header=feature_header(spec, weights_digest=DIGEST))
        token = request.shared_memory_token
        with self._door.lease(token, spec.num_bytes) if self._door and token else nullcontext() as lease:
            messages = (
                feature_messages(packed, timings=TIMINGS)
                if lease is None
                else shared_feature_messages(
                    spec,
                    packed,
                    region=lease.to_wire(),
                    write=lease.write,
                    weights_digest=DIGEST,
                    timings=TIMINGS,
                )
            )
            try:
                async for message in self.behaviour([pb.EncodeResponse.FromString(message) for message in messages]):
                    yield message
                if lease is not None:
                    await lease.done.wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise

    async def GetModelInfo(self, request: object, context: object) -> pb.VisionServiceGetModelInfoResponse:
        return self.info

    async def GetLoad(self, request: object, context: object) -> pb.GetLoadResponse:
        return pb.GetLoadResponse(pending_patches=self.pending_patches)

    async def start(self) -> None:
        """Listen; a second time at the same address."""
        if SHARES:
            self._door = ArenaDoor(SharedArena(2**26))
            self._door.start()
            self.info.shared_memory_socket = self._door.name
        port = int(self.address.partition(":")[2])
        self._server = GrpcServer(ServerConfig(host=self.host, port=port), registry=CollectorRegistry())
        vision_pb2_grpc.add_VisionServiceServicer_to_server(self, self._server.grpc)
        self.address = f"{self.host}:{await self._server.start()}"

    def set_serving(self, serving: bool) -> None:
        assert self._server is not None
        self._server.set_serving(["diptych.v1.VisionService"], serving=serving)

    async def stop(self) -> None:
        """Die, as far as callers can tell."""
        if self._server is not None:
            await self._server.grpc.stop(None)
            self._server = None
        if self._door is not None:
            door = self._door
            await until(lambda: door.bytes_taken == 0)  # The call that was cut off cleans up by itself.
            await door.close()
            self._door = None


class Names:
    """A name service that says what the test says."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: list[str] = list(addresses)
        self.is_down = False

    async def look_up(self, host: str, port: int) -> list[str]:
        assert (host, port) == ("vision", 50052)
        if self.is_down:
            raise OSError
        return self.addresses

    @property
    def resolver(self) -> VisionResolver:
        return VisionResolver(["dns:///vision:50052"], lookup=self.look_up, every=0.05)


@asynccontextmanager
async def client_of(
    *replicas: FakeReplica, ready: bool = True, names: Names | None = None, hedge_seconds: float | None = None
) -> AsyncIterator[VisionClient]:
    before = asyncio.all_tasks()
    for replica in replicas:
        await replica.start()
    resolver = names.resolver if names else VisionResolver([replica.address for replica in replicas])
    client = VisionClient(resolver, expected=EXPECTED, hedge_seconds=hedge_seconds)
    await client.start()
    try:
        if ready:
            await until(lambda: all(replica.state is ReplicaState.READY for replica in client.replicas))
        yield client
    finally:
        await client.close()
        for replica in replicas:
            await replica.stop()
        await asyncio.sleep(0)
        assert {
            task.get_name() for task in asyncio.all_tasks() - before if task.get_name().startswith("vision")
        } == set()


async def encode(client: VisionClient, name: bytes = b"h", grid: PatchGrid = GRID) -> bytes:
    spec = spec_of(name, grid)
    buffer = bytearray(spec.num_bytes)
    await client.encode(name * 10, salt=b"s", spec=spec, buffer=memoryview(buffer), request_id="r")
    return bytes(buffer)


def preferred(name: bytes, addresses: Sequence[str]) -> str:
    """The replica that an image goes to while nobody has anything to do."""
    return VisionRouter().choose(spec_of(name).image_hash, dict.fromkeys(addresses, 0), now=0.0)


async def failure(client: VisionClient, grid: PatchGrid = GRID) -> DiptychError:
    with pytest.raises(DiptychError) as caught:
        await encode(client, grid=grid)
    return caught.value


@asynccontextmanager
async def meeting(names: Names, address: str) -> AsyncIterator[VisionClient]:
    """A client that has met one replica."""
    client = VisionClient(names.resolver, expected=EXPECTED)
    await client.start()
    try:
        await client.wait_ready()
        assert [replica.address for replica in client.replicas] == [address]
        yield client
    finally:
        await client.close()


async def server_process(program: str, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """A process that serves, and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().split()[1]
