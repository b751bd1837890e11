"""What befalls several images, or several replicas, at the same time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from common.errors import ResourceExhaustedError, UnavailableError
from decoder_service.vision.replica import VisionReplica
from decoder_service.vision.replica_state import ReplicaState
from diptych.v1 import vision_pb2 as pb
from tests.decoder_service.vision import replica_fakes as fakes
from tests.decoder_service.vision.replica_fakes import FakeReplica, client_of, encode, failing, failure, forever
from tests.waiting import until


def names_of(replica: FakeReplica, *others: FakeReplica) -> list[bytes]:
    """Images that go to `replica` first."""
    addresses = [each.address for each in (replica, *others)]
    names = (bytes([name]) for name in range(1, 255))
    return [name for name in names if fakes.preferred(name, addresses) == replica.address]


async def never(messages: list[pb.EncodeResponse]) -> AsyncIterator[pb.EncodeResponse]:
    await asyncio.sleep(60)
    yield messages[0]


async def reason_of(task: "asyncio.Task[bytes]") -> str:
    with pytest.raises(UnavailableError) as caught:
        await task
    return caught.value.reason


@pytest.mark.parametrize(("num_replicas", "num_images"), [(1, 100), (2, 8), (3, 8)])
async def test_closing_ends_all_calls_with_one_reason_wherever_they_are(num_replicas: int, num_images: int) -> None:
    replicas = [FakeReplica(never, grid=fakes.SMALL) for _ in range(num_replicas)]
    async with client_of(*replicas) as client:
        names = [bytes([index]) for index in range(num_images)]
        tasks = [asyncio.create_task(encode(client, name, fakes.SMALL)) for name in names]
        # One replica takes no more at once, so that of a hundred some have not been sent yet.
        await until(lambda: sum(replica.num_encodes for replica in replicas) == min(num_images, 64))
        await client.close()
        reasons = Counter([await reason_of(task) for task in tasks])
    assert reasons == {"VISION_UNAVAILABLE": num_images}


async def test_a_full_replica_is_asked_once_though_another_one_fails_otherwise() -> None:
    full = FakeReplica(failing(ResourceExhaustedError("ENCODER_QUEUE_FULL", "full", retry_after=1.0)))
    leaving = FakeReplica(failing(UnavailableError("DRAINING", "this replica is shutting down")))
    async with client_of(full, leaving) as client:
        with pytest.raises(UnavailableError):
            await encode(client, names_of(full, leaving)[0])
        assert (full.num_encodes, leaving.num_encodes) == (1, 1)


class Slow(FakeReplica):
    """Answers what it is asked about itself only while the gate is open."""

    def __init__(self, behaviour: fakes.Behaviour) -> None:
        super().__init__(behaviour)
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_asked = asyncio.Event()

    async def GetLoad(self, request: object, context: object) -> pb.GetLoadResponse:
        self.is_asked.set()
        await self.gate.wait()
        return await super().GetLoad(request, context)


async def test_an_answer_that_was_under_way_does_not_bring_a_bad_replica_back() -> None:
    replica = Slow(fakes.corrupt)
    async with client_of(replica) as client:
        replica.gate.clear()
        replica.is_asked.clear()
        await replica.is_asked.wait()
        assert (await failure(client)).reason == "EMBED_CORRUPT"
        assert client.replicas[0].state is ReplicaState.BAD
        replica.gate.set()
        await asyncio.sleep(0.5)
        assert client.replicas[0].state is ReplicaState.BAD


async def test_streams_that_were_bad_are_counted_wherever_the_image_came_from() -> None:
    slow, bad = FakeReplica(forever), FakeReplica(fakes.corrupt)
    async with client_of(slow, bad, hedge_seconds=0.05) as client:
        task = asyncio.create_task(encode(client, names_of(slow, bad)[0]))
        await until(lambda: client.bad_streams["EMBED_CORRUPT"] == 1)
        assert not task.done()
        task.cancel()


async def test_what_is_told_of_a_replica_is_why_it_may_not_be_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    right, wrong = FakeReplica(), FakeReplica()
    wrong.info.api_version = "1.0"
    async with client_of(right, wrong, ready=False) as client:
        await until(
            lambda: {replica.state for replica in client.replicas} == {ReplicaState.READY, ReplicaState.MISMATCH}
        )
        await right.stop()
        await until(lambda: client.replicas[0].state is ReplicaState.UNREACHABLE)
    told = [vars(record) for record in caplog.records if record.message == "vision replica"]
    found = {line["state"]: line.get("reason", "") for line in told}
    assert found["ready"] == ""
    assert "1.0" in found["mismatch"]
    assert found["unreachable"]


_STUCK_SERVER = """
import asyncio, time
from tests.decoder_service.vision import replica_fakes as fakes
async def stuck(messages):
    yield messages[0]
    await asyncio.sleep(0.1)
    time.sleep(60)
async def main():
    await fakes.FakeReplica(stuck).start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def encode_at(replica: VisionReplica) -> bytes:
    """In one attempt, so that it is seen what became of it."""
    spec = fakes.spec_of()
    buffer = bytearray(spec.num_bytes)
    request = pb.EncodeRequest(image=b"h", salt=b"s", request_id="r")
    await replica.encode(request, spec=spec, buffer=memoryview(buffer))
    return bytes(buffer)


async def test_a_replica_that_answers_nothing_loses_its_images_to_another_though_its_connection_lives() -> None:
    process, address = await fakes.server_process(_STUCK_SERVER)
    names, other = fakes.Names(address), FakeReplica()
    try:
        await other.start()
        async with fakes.meeting(names, address) as client, asyncio.timeout(15):
            task = asyncio.create_task(encode(client))
            attempt = asyncio.create_task(encode_at(client.replicas[0]))
            await asyncio.sleep(0.3)
            names.addresses.append(other.address)
            assert await task == fakes.rows_of()
            assert await reason_of(attempt) == "REPLICA_SILENT"
        assert other.num_encodes == 1
    finally:
        process.kill()
        await process.wait()
        await other.stop()


async def test_calls_that_are_dropped_are_not_said_to_be_a_silent_replicas_where_it_answers() -> None:
    async with client_of(FakeReplica(forever)) as client:
        (replica,) = client.replicas
        attempt = asyncio.create_task(encode_at(replica))
        await asyncio.sleep(0.1)
        replica.drop_calls()
        assert await reason_of(attempt) == "CLIENT_CLOSED"
