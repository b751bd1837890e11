"""A replica whose packets are lost without a word is given up in seconds, and used again when the network is back.

Runs where network namespaces can be made: as root, with iproute2.
"""

import asyncio
import os
import sys

import pytest

_SERVER = """
import asyncio
from tests.decoder_service.vision.replica_fakes import FakeReplica
async def main():
    replica = FakeReplica()
    replica.host, replica.address = "0.0.0.0", "0.0.0.0:50052"
    await replica.start()
    await asyncio.sleep(120)
asyncio.run(main())
"""
_IN_A_NETWORK = """
import asyncio, sys, time
try:
    from benchmarks.pod_network import Network
    network = Network()
except (OSError, RuntimeError) as error:
    print("no network:", error)
    sys.exit()
from decoder_service.vision.client import VisionClient
from decoder_service.vision.replica_state import ReplicaState
from decoder_service.vision.resolver import VisionResolver
from tests.decoder_service.vision import replica_fakes as fakes

async def main():
    resolver = VisionResolver(["10.99.0.21:50052"])
    client = VisionClient(resolver, expected=fakes.EXPECTED)
    await client.start()
    await client.wait_ready()
    assert await fakes.encode(client) == fakes.rows_of()
    network.cut("v1", joined=False)
    begin = time.monotonic()
    reason = (await fakes.failure(client)).reason
    took = time.monotonic() - begin
    network.cut("v1", joined=True)
    await fakes.until(lambda: client.replicas[0].state is ReplicaState.READY, seconds=20)
    assert await fakes.encode(client) == fakes.rows_of()
    await client.close()
    print(reason, took < 6, took)

try:
    network.add_pod("v1", "10.99.0.21")
    server = network.start("v1", "-c", sys.argv[1])
    try:
        asyncio.run(main())
    finally:
        server.kill()
        server.wait()
finally:
    network.close()
"""


async def test_a_replica_that_is_cut_off_is_given_up_within_six_seconds_and_used_again_later() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _IN_A_NETWORK, _SERVER),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]},
    )
    async with asyncio.timeout(60):
        output, errors = (text.decode() for text in await process.communicate())
    if output.startswith("no network"):
        pytest.skip(output.strip())
    assert output.split()[:2] == ["VISION_UNAVAILABLE", "True"], output + errors
