"""What a replica is told, and how often replicas are asked."""

from collections.abc import AsyncIterator

from common.errors import ResourceExhaustedError
from diptych.v1 import vision_pb2 as pb
from tests.decoder_service.vision.replica_fakes import SMALL, FakeReplica, client_of, encode, failing, failure, rows_of

FULL = failing(ResourceExhaustedError("FULL", "full", retry_after=1.0))


class Listening(FakeReplica):
    """One that keeps what it was told last."""

    def Encode(self, request: pb.EncodeRequest, context: object) -> AsyncIterator[pb.EncodeResponse]:
        self.told = request.image, request.salt, request.request_id
        return super().Encode(request, context)


async def test_a_replica_is_told_the_picture_whose_it_is_and_of_which_request() -> None:
    replica = Listening(grid=SMALL)
    async with client_of(replica) as client:
        assert await encode(client, b"p", SMALL) == rows_of(b"p", SMALL)
    assert replica.told == (b"p" * 10, b"s", "r")


async def test_each_first_try_earns_a_part_of_another_one_and_no_first_try_needs_any() -> None:
    replicas = [FakeReplica(FULL, grid=SMALL), FakeReplica(FULL, grid=SMALL)]
    async with client_of(*replicas) as client:
        while client._may_repeat():
            pass
        before = client.num_repeated
        for _ in range(20):
            assert (await failure(client, SMALL)).reason == "FULL"
        num_repeated = client.num_repeated - before
        assert sum(replica.num_encodes for replica in replicas) == 20 + num_repeated
        assert num_repeated >= 0.2 * 20 - 1
