"""A message of features is let go as soon as its rows are in their place, not when the next one is there."""

import asyncio
import sys

from common.features.chunk_copy import Copied, copy_plainly
from decoder_service.vision.client import VisionClient
from decoder_service.vision.resolver import VisionResolver
from tests.decoder_service.vision.test_client import DIGEST, WIDTH, FakeReplica, encode, forever
from tests.waiting import until


async def test_no_message_is_held_while_the_next_one_is_waited_for() -> None:
    messages: list[object] = []

    def copy(place: memoryview, data: memoryview, dtype: str) -> Copied:
        messages.append(data.obj)
        return copy_plainly(place, data, dtype)

    replica = FakeReplica(forever)
    await replica.start()
    client = VisionClient(
        VisionResolver([replica.address]), expected_digest=DIGEST, expected_width=WIDTH, shared_memory=False, copy=copy
    )
    await client.start()
    try:
        await client.wait_ready()
        waiting = asyncio.create_task(encode(client))
        await until(lambda: len(messages) == 2)
        await asyncio.sleep(0.05)  # The client now waits for the third.
        # What the messages alone have: their place in the list, and the argument of the function that counts.
        assert [sys.getrefcount(messages[index]) for index in range(2)] == [2, 2]
        waiting.cancel()
        await asyncio.wait({waiting})
    finally:
        await client.close()
        await replica.stop()
