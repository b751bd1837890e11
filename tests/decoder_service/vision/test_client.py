"""Features come from whichever replica can give them, or one clear error comes soon."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import suppress

import grpc
import pytest

from common.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from common.image.preprocessing import PreprocessingMode
from decoder_service.vision.client import VisionClient
from decoder_service.vision.replica_state import ReplicaState
from decoder_service.vision.resolver import VisionResolver
from diptych.v1 import types_pb2
from diptych.v1 import vision_pb2 as pb
from tests.decoder_service.vision.replica_fakes import (
    EXPECTED,
    SHARES,
    SMALL,
    FakeReplica,
    Names,
    another_image,
    client_of,
    corrupt,
    encode,
    failing,
    failure,
    forever,
    meeting,
    preferred,
    rows_of,
    server_process,
    spec_of,
    well,
)
from tests.pictures import preprocessing
from tests.waiting import until, within


@pytest.fixture(autouse=True, params=["inline", "shared"])
def _memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether rows lie in the stream or in shared memory."""
    SHARES[:] = [True] if request.param == "shared" else []
    yield
    SHARES.clear()


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
from tests.decoder_service.vision import replica_fakes as fakes
async def dies(messages):
    for message in messages[: int(sys.argv[1])]:
        yield message
    await asyncio.sleep(0.05)  # They are on their way.
    os.kill(os.getpid(), signal.SIGKILL)
async def main():
    fakes.SHARES[:] = [True] if sys.argv[2] == "shared" else []
    await fakes.FakeReplica(dies).start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_process_that_is_killed_after_any_message_costs_nothing() -> None:
    memory = "shared" if SHARES else "inline"
    dying = await asyncio.gather(*(server_process(_DYING_SERVER, str(after), memory) for after in range(5)))
    living = FakeReplica()
    try:
        await living.start()
        for process, address in dying:
            names = Names(address)
            async with meeting(names, address) as client:
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
        errors = await within(1.0, asyncio.gather(*(failure(client) for _ in range(5))))
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
from tests.decoder_service.vision.replica_fakes import FakeReplica
async def main():
    await FakeReplica().start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_frozen_replica_is_given_up_within_six_seconds() -> None:
    process, address = await server_process(_FROZEN_SERVER)
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
