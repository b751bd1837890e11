"""Features come from whichever replica can give them, or one clear error comes soon."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress

import grpc
import pytest
from prometheus_client import CollectorRegistry

from common.errors import (
    DiptychError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
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


@pytest.fixture(autouse=True, params=["inline", "shared"])
def _memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether rows lie in the stream or in shared memory."""
    SHARES[:] = [True] if request.param == "shared" else []
    yield
    SHARES.clear()


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


async def seconds(work: Awaitable[object]) -> float:
    begin = time.monotonic()
    await work
    return time.monotonic() - begin


async def test_features_arrive_and_the_handshake_is_kept() -> None:
    replica = FakeReplica()
    async with client_of(replica) as client:
        await client.wait_ready()
        assert await encode(client) == rows_of()
        assert client.info is not None
        assert client.info.preprocessing.fingerprint() == preprocessing(PreprocessingMode.HF).fingerprint()
        await replica.stop()
        await failure(client)
        assert client.info is not None


@pytest.mark.parametrize("after", range(5))
async def test_a_replica_that_dies_after_any_message_costs_nothing(after: int) -> None:
    dying = failing(UnavailableError("DRAINING", "this replica is shutting down"), after=after)
    replicas = [FakeReplica(dying), FakeReplica(dying), FakeReplica()]
    async with client_of(*replicas) as client:
        assert await encode(client) == rows_of()


async def test_a_killed_server_costs_nothing_while_another_lives() -> None:
    replicas = [FakeReplica(forever), FakeReplica()]
    async with client_of(*replicas) as client:
        replicas[1].pending_patches = 10**6  # So that the first one is asked first.
        await until(lambda: client.replicas[1].pending_patches == 10**6)
        task = asyncio.create_task(encode(client))
        await until(lambda: replicas[0].num_encodes == 1)
        await replicas[0].stop()
        assert await task == rows_of()
        assert replicas[1].num_encodes == 1


_DYING_SERVER = """
import asyncio, os, signal, sys
from tests.decoder_service.vision import test_client as tests
async def dies(messages):
    for message in messages[: int(sys.argv[1])]:
        yield message
    await asyncio.sleep(0.05)  # They are on their way.
    os.kill(os.getpid(), signal.SIGKILL)
async def main():
    tests.SHARES[:] = [True] if sys.argv[2] == "shared" else []
    await tests.FakeReplica(dies).start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_process_that_is_killed_after_any_message_costs_nothing() -> None:
    memory = "shared" if SHARES else "inline"
    dying = await asyncio.gather(*(_server_process(_DYING_SERVER, str(after), memory) for after in range(5)))
    living = FakeReplica()
    try:
        await living.start()
        for process, address in dying:
            names = Names(address)
            async with _meeting(names, address) as client:
                task = asyncio.create_task(encode(client))
                names.addresses.append(living.address)
                assert await task == rows_of()
                assert await process.wait() == -signal.SIGKILL
        assert living.num_encodes == len(dying)
    finally:
        await living.stop()
        for process, _ in dying:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@asynccontextmanager
async def _meeting(names: Names, address: str) -> AsyncIterator[VisionClient]:
    """A client that has met one replica."""
    client = VisionClient(names.resolver, expected=EXPECTED)
    await client.start()
    try:
        await client.wait_ready()
        assert [replica.address for replica in client.replicas] == [address]
        yield client
    finally:
        await client.close()


async def _server_process(program: str, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """A process that serves, and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().split()[1]


async def test_a_broken_stream_is_tried_again_elsewhere() -> None:
    replicas = [FakeReplica(corrupt), FakeReplica()]
    async with client_of(*replicas) as client:
        for name in (b"a", b"b", b"c", b"d", b"e"):
            assert await encode(client, name) == rows_of(name)


async def test_a_replica_whose_streams_are_always_bad_gets_no_more_work() -> None:
    replica = FakeReplica(corrupt)
    async with client_of(replica) as client:
        error = await failure(client)
        assert isinstance(error, InternalError)
        assert (error.reason, replica.num_encodes) == ("EMBED_CORRUPT", 3)
        assert client.replicas[0].state is ReplicaState.BAD
        assert (await failure(client)).reason == "VISION_UNAVAILABLE"
        assert replica.num_encodes == 3


async def test_features_of_another_image_are_refused() -> None:
    async with client_of(FakeReplica(another_image)) as client:
        assert (await failure(client)).reason == "EMBED_INVALID"


async def test_a_refusal_comes_through_and_is_not_tried_again() -> None:
    refusal = InvalidArgumentError(
        "IMAGE_TOO_LARGE", "the image is too large", field="image", metadata={"limit": 1, "got": 2}
    )
    replicas = [FakeReplica(failing(refusal)), FakeReplica(failing(refusal))]
    async with client_of(*replicas) as client:
        error = await failure(client)
        assert isinstance(error, InvalidArgumentError)
        assert (error.reason, error.field, error.metadata) == ("IMAGE_TOO_LARGE", "image", {"limit": "1", "got": "2"})
        assert sum(replica.num_encodes for replica in replicas) == 1


async def test_a_full_replica_is_asked_once_and_then_the_other() -> None:
    full = failing(ResourceExhaustedError("ENCODER_QUEUE_FULL", "too many patches wait", retry_after=2.5))
    replicas = [FakeReplica(full), FakeReplica(full)]
    async with client_of(*replicas) as client:
        error = await failure(client)
        assert isinstance(error, ResourceExhaustedError)
        assert (error.reason, error.retry_after) == ("ENCODER_QUEUE_FULL", 2.5)
        assert [replica.num_encodes for replica in replicas] == [1, 1]
        replicas[1].behaviour = well
        assert await encode(client) == rows_of()


async def test_when_all_are_down_the_answer_comes_within_a_second() -> None:
    replicas = [FakeReplica(), FakeReplica()]
    async with client_of(*replicas) as client:
        for replica in replicas:
            await replica.stop()
        begin = time.monotonic()
        errors = await asyncio.gather(*(failure(client) for _ in range(5)))
        assert time.monotonic() - begin < 1.0
        for error in errors:
            assert isinstance(error, UnavailableError)
            assert (error.reason, error.retry_after) == ("VISION_UNAVAILABLE", 1.0)


async def test_a_replica_that_comes_back_gets_work_again() -> None:
    replica = FakeReplica()
    async with client_of(replica) as client:
        await replica.stop()
        await failure(client)
        await replica.start()
        await until(lambda: client.replicas[0].state is ReplicaState.READY)
        assert await encode(client) == rows_of()


async def test_a_short_restart_is_waited_for() -> None:
    replica = FakeReplica()
    async with client_of(replica) as client:
        await replica.stop()
        task = asyncio.create_task(encode(client))
        await asyncio.sleep(0.1)
        await replica.start()
        assert await task == rows_of()


MISMATCHES = {
    "weights": pb.VisionServiceGetModelInfoResponse(weights_digest=b"x" * 32),
    "wide": pb.VisionServiceGetModelInfoResponse(feature_width=5120),
    "version 1.0": pb.VisionServiceGetModelInfoResponse(api_version="1.0"),
    "number type": pb.VisionServiceGetModelInfoResponse(dtype=99),  # type: ignore[arg-type]
    "preprocessing": pb.VisionServiceGetModelInfoResponse(preprocessing=types_pb2.Preprocessing(mode=99)),  # type: ignore[arg-type]
}


async def test_a_replica_that_does_not_let_us_in_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    class Closed(FakeReplica):
        num_asked = 0

        async def GetModelInfo(self, request: object, context: object) -> pb.VisionServiceGetModelInfoResponse:
            self.num_asked += 1
            raise UnauthenticatedError("TOKEN_MISSING", "the call must bring a token")

    replica = Closed()
    async with client_of(replica, ready=False):
        await until(lambda: replica.num_asked > 1)
    told = [record for record in caplog.records if getattr(record, "reason", "") == "NOT_LET_IN"]
    assert [getattr(record, "address", "") for record in told] == [replica.address]


@pytest.mark.parametrize("name", MISMATCHES)
async def test_a_replica_that_does_not_match_gets_no_work(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    wrong, right = FakeReplica(), FakeReplica()
    wrong.info.MergeFrom(MISMATCHES[name])
    async with client_of(wrong, right, ready=False) as client:
        await client.wait_ready()
        for image in (b"a", b"b", b"c", b"d"):
            assert await encode(client, image) == rows_of(image)
        assert wrong.num_encodes == 0
    told = {getattr(record, "state", ""): vars(record) for record in caplog.records if hasattr(record, "state")}
    assert name in told["mismatch"]["reason"]
    assert told["mismatch"]["address"] == wrong.address
    assert "reason" not in told["ready"]


async def test_replicas_must_agree_with_the_first_about_pixels_and_type() -> None:
    replicas = [FakeReplica() for _ in range(3)]
    replicas[1].info.preprocessing.mode = types_pb2.PREPROCESSING_MODE_MISTRAL
    replicas[2].info.dtype = types_pb2.DTYPE_BFLOAT16
    async with client_of(*replicas, ready=False) as client:
        await until(lambda: all(replica.state is not ReplicaState.UNREACHABLE for replica in client.replicas))
        assert [replica.state for replica in client.replicas].count(ReplicaState.READY) == 1


async def test_when_no_replica_matches_the_deployment_is_at_fault() -> None:
    wrong = FakeReplica()
    wrong.info.weights_digest = b"x" * 32
    async with client_of(wrong, ready=False) as client:
        error = await failure(client)
        assert isinstance(error, FailedPreconditionError)
        assert error.reason == "MODEL_MISMATCH"
        assert client.info is None
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.wait_ready()
                pytest.fail("a replica that does not match made the client ready")


async def test_a_replica_that_comes_back_with_another_model_gets_no_work() -> None:
    replica = FakeReplica()
    async with client_of(replica) as client:
        await replica.stop()
        replica.info.weights_digest = b"x" * 32
        replica.behaviour = another_image
        await replica.start()
        assert isinstance(await failure(client), FailedPreconditionError)
        assert client.replicas[0].state is ReplicaState.MISMATCH
        assert isinstance(await failure(client), FailedPreconditionError)
        assert replica.num_encodes <= 1


async def test_work_goes_where_the_fewest_patches_wait() -> None:
    replicas = [FakeReplica() for _ in range(3)]
    replicas[0].pending_patches = replicas[2].pending_patches = 100_000
    async with client_of(*replicas) as client:
        await until(lambda: sum(replica.pending_patches for replica in client.replicas) == 200_000)
        for name in (b"a", b"b", b"c", b"d"):
            await encode(client, name)
        assert [replica.num_encodes for replica in replicas] == [0, 4, 0]


async def test_images_of_one_request_are_spread_and_equal_ones_go_to_the_same_replica() -> None:
    replicas = [FakeReplica() for _ in range(3)]
    async with client_of(*replicas) as client:
        await asyncio.gather(*(encode(client, bytes([65 + index])) for index in range(3)))
        assert [replica.num_encodes for replica in replicas] == [1, 1, 1]
        for _ in range(5):
            await encode(client, b"z")
        assert sorted(replica.num_encodes for replica in replicas) == [1, 1, 6]


async def test_work_at_once_is_spread_though_one_replica_is_preferred() -> None:
    everybody = asyncio.Barrier(18)

    async def when_all_are_here(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
        await everybody.wait()
        for message in messages:
            yield message

    replicas = [FakeReplica(when_all_are_here) for _ in range(3)]
    async with client_of(*replicas) as client:
        addresses = [replica.address for replica in replicas]
        names = [bytes([name]) for name in range(1, 255) if preferred(bytes([name]), addresses) == addresses[0]]
        await asyncio.gather(*(encode(client, name) for name in names[:18]))
        # A replica takes another image while it has at most 1.2 times the mean and one of 4096 patches waiting.
        assert max(replica.num_encodes for replica in replicas) <= 12


async def test_one_replica_never_gets_more_streams_than_a_server_takes() -> None:
    at_once = most = 0
    full = asyncio.Event()

    async def slowly(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once == 64:
            full.set()
        await asyncio.wait_for(full.wait(), 20)
        await asyncio.sleep(0.05)
        at_once -= 1
        for message in messages:
            yield message

    async with client_of(FakeReplica(slowly, grid=SMALL)) as client:
        await asyncio.gather(*(encode(client, bytes([index % 100]), SMALL) for index in range(150)))
        assert most == 64


async def test_retries_cannot_multiply_the_load() -> None:
    full = failing(ResourceExhaustedError("FULL", "full", retry_after=1.0))
    replicas = [FakeReplica(full, grid=SMALL) for _ in range(3)]
    async with client_of(*replicas) as client:
        await asyncio.gather(*(failure(client, SMALL) for _ in range(300)))
        assert 300 < sum(replica.num_encodes for replica in replicas) < 300 * 1.2 + 128 + 20


async def test_an_image_that_takes_long_is_sent_to_a_second_replica_where_that_is_wanted() -> None:
    slow, fast = FakeReplica(forever), FakeReplica()
    async with client_of(slow, fast, hedge_seconds=0.1) as client:
        addresses = [slow.address, fast.address]
        names = [bytes([name]) for name in range(1, 255) if preferred(bytes([name]), addresses) == slow.address]
        for name in names[:3]:
            assert await encode(client, name) == rows_of(name)
        assert fast.num_encodes == 3
        assert slow.num_encodes > 0
        await until(lambda: slow.num_cancelled == slow.num_encodes)


async def test_a_caller_that_leaves_cancels_the_call() -> None:
    replica = FakeReplica(forever)
    async with client_of(replica) as client:
        for leave in (True, False):
            replica.num_encodes = replica.num_cancelled = 0
            task = asyncio.create_task(encode(client))
            await until(lambda: replica.num_encodes == 1)
            await asyncio.sleep(0.05)
            if leave:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await task
            await until(lambda: replica.num_cancelled == 1)
        assert client.replicas[0].pending_patches == 0
        assert client.replicas[0].state is ReplicaState.READY


async def test_a_bad_stream_is_cancelled_and_not_read_to_its_end() -> None:
    async def bad_then_forever(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
        yield messages[1]
        await asyncio.sleep(60)

    replicas = [FakeReplica(bad_then_forever), FakeReplica(bad_then_forever)]
    async with client_of(*replicas) as client:
        assert (await failure(client)).reason == "EMBED_CORRUPT"
        await until(lambda: sum(replica.num_cancelled for replica in replicas) == 3)


async def test_a_trickling_stream_ends_with_the_callers_time_and_holds_nobody_up() -> None:
    num_sent = 0

    async def trickle(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
        nonlocal num_sent
        is_slow = messages[0].header.image_hash == spec_of(b"s").image_hash
        for message in messages:
            yield message
            if is_slow:
                num_sent += 1
                await asyncio.sleep(0.05 if num_sent < 2 else 60)

    replica = FakeReplica(trickle)
    async with client_of(replica) as client:
        slow = asyncio.create_task(encode(client, b"s"))
        await until(lambda: num_sent == 2)
        for name in (b"a", b"b", b"c"):
            assert await encode(client, name) == rows_of(name)
        assert not slow.done()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await slow
        await until(lambda: replica.num_cancelled == 1)
        assert client.replicas[0].pending_patches == 0
        assert client.replicas[0].state is ReplicaState.READY


async def test_closing_ends_calls_under_way_with_an_error() -> None:
    replica = FakeReplica(forever)
    async with client_of(replica) as client:
        task = asyncio.create_task(failure(client))
        await until(lambda: replica.num_encodes == 1)
        await client.close()
        assert isinstance(await task, UnavailableError)


async def test_a_client_without_addresses_says_that_nobody_answers() -> None:
    client = VisionClient(VisionResolver([]), expected=EXPECTED)
    await client.start()
    assert (await failure(client)).reason == "VISION_UNAVAILABLE"
    await client.close()


async def test_replicas_behind_a_name_come_and_go() -> None:
    names, first, second = Names(), FakeReplica(), FakeReplica()
    async with client_of(first, second, names=names, ready=False) as client:
        names.addresses = [first.address]
        await until(lambda: [replica.state for replica in client.replicas] == [ReplicaState.READY])
        assert await encode(client) == rows_of()
        names.addresses = [first.address, second.address]
        await until(lambda: [replica.state for replica in client.replicas] == [ReplicaState.READY] * 2)
        names.addresses = [second.address]
        await until(lambda: [replica.address for replica in client.replicas] == [second.address])
        assert await encode(client, b"b") == rows_of(b"b")
        assert (first.num_encodes, second.num_encodes) == (1, 1)


async def test_a_replica_that_vanishes_ends_its_calls_first() -> None:
    gate = asyncio.Event()

    async def held(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
        yield messages[0]
        await gate.wait()
        for message in messages[1:]:
            yield message

    names, first, second = Names(), FakeReplica(held), FakeReplica()
    async with client_of(first, second, names=names, ready=False) as client:
        names.addresses = [first.address]
        await until(lambda: [replica.state for replica in client.replicas] == [ReplicaState.READY])
        task = asyncio.create_task(encode(client))
        await until(lambda: first.num_encodes == 1)
        names.addresses = [second.address]
        await until(lambda: [replica.address for replica in client.replicas] == [second.address])
        gate.set()
        assert await task == rows_of()
        assert second.num_encodes == 0


async def test_a_replica_that_vanishes_in_the_last_moment_is_closed_with_the_others() -> None:
    names, first = Names(), FakeReplica()
    async with client_of(first, names=names, ready=False) as client:
        names.addresses = [first.address]
        await until(lambda: [replica.state for replica in client.replicas] == [ReplicaState.READY])
        (replica,) = client.replicas
        client._fleet._leave(first.address)
    assert replica._guest.visit is None
    assert replica._channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_name_that_is_not_found_changes_nothing() -> None:
    names, first, second = Names(), FakeReplica(), FakeReplica()
    async with client_of(first, second, names=names, ready=False) as client:
        names.addresses = [first.address]
        await until(lambda: [replica.state for replica in client.replicas] == [ReplicaState.READY])
        names.is_down = True
        await asyncio.sleep(0.2)
        assert await encode(client) == rows_of()
        names.is_down, names.addresses = False, []
        await asyncio.sleep(0.2)
        assert await encode(client) == rows_of()
        names.addresses = [second.address]
        await until(lambda: [replica.address for replica in client.replicas] == [second.address])


async def test_a_draining_replica_gets_no_more_work_within_a_second() -> None:
    first, second = FakeReplica(), FakeReplica()
    async with client_of(first, second) as client:
        first.set_serving(False)
        begin = time.monotonic()
        await until(lambda: client.replicas[0].state is ReplicaState.DRAINING)
        assert time.monotonic() - begin < 1.0
        await asyncio.sleep(1.5)  # A question about its load does not bring it back.
        assert client.replicas[0].state is ReplicaState.DRAINING
        for name in (b"a", b"b", b"c", b"d"):
            await encode(client, name)
        assert (first.num_encodes, second.num_encodes) == (0, 4)
        first.set_serving(True)
        await until(lambda: client.replicas[0].state is ReplicaState.READY)


_FROZEN_SERVER = """
import asyncio
from tests.decoder_service.vision.test_client import FakeReplica
async def main():
    await FakeReplica().start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_frozen_replica_is_given_up_within_six_seconds() -> None:
    process, address = await _server_process(_FROZEN_SERVER)
    client = VisionClient(VisionResolver([address]), expected=EXPECTED)
    try:
        await client.start()
        await client.wait_ready()
        assert await encode(client) == rows_of()
        process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        assert (await failure(client)).reason == "VISION_UNAVAILABLE"
        assert time.monotonic() - begin < 6.0
        process.send_signal(signal.SIGCONT)
        await until(lambda: client.replicas[0].state is ReplicaState.READY)
        assert await encode(client) == rows_of()
    finally:
        await client.close()
        process.kill()
        await process.wait()
