"""Measures how soon a full service refuses a burst: `python -m benchmarks refusals`.

Runs the services with the demo model and narrow limits. A decoder with a few decodes under way and a full queue gets
bursts of requests; a vision service gets bursts of pictures, once where few patches may wait and once where few bytes
may. Prints the times from a call's beginning to its refusal. Beside them stands a bare grpc.aio server that
does nothing but refuse: what of the time is the library's, caller and server. Calls of a burst are made all at once, by
one process over several connections, so that the last of them waits for all others at both ends. Knows loads and times.
Does not know how a service decides (see `decoder_service.engine.admission`).
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from benchmarks.fake_vision import picture
from benchmarks.load.pair import environment
from benchmarks.peers.protocol import ROOT
from benchmarks.restarts.replicas import Replica
from benchmarks.statistics import percentile
from common.calls.channel_options import SERVER_OPTIONS
from common.client.messages import generate_request, token_ids
from common.client.options import channel_options
from diptych.v1 import vision_pb2

CALLS_PER_CONNECTION = 50
"""Below what a server takes at once on one connection, so that no call waits for another's end."""
GENERATE, ENCODE = "/diptych.v1.GenerationService/Generate", "/diptych.v1.VisionService/Encode"
SIDE = 160
RUNNING, QUEUED = 4, 8
MAX_TOKENS = 2000
PAUSE_SECONDS = 0.5
DECODER = ("--max-num-requests", str(RUNNING), "--max-queue", str(QUEUED))
VISION = {
    "patches": ("--max-pending-patches", "1000", "--feature-cache-bytes", "0"),
    "bytes": ("--max-pending-bytes", str(2**20), "--max-image-bytes", str(2**16), "--feature-cache-bytes", "0"),
}
BARE = "--serve-bare"

Make = Callable[[int], Message]
"""Makes a request, another one for each number."""
Outcomes = list[tuple[str, float]]
"""Of each call its status and milliseconds."""


@asynccontextmanager
async def channels(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """So many connections, each of them there."""
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, channel_options("")))
            for _ in range(count)
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in found))
        yield found


async def burst(over: Sequence[grpc.aio.Channel], method: str, requests: Sequence[Message]) -> Outcomes:
    """Make calls all at once; how each ended, and when."""
    calls: list[Any] = [channel.unary_stream(method, request_serializer=_serialize) for channel in over]

    async def one(call: Any, request: Message) -> tuple[str, float]:  # noqa: ANN401 - gRPC's
        begin = time.perf_counter()
        try:
            async for _ in call(request):
                pass
            status = "OK"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        return status, 1000 * (time.perf_counter() - begin)

    return list(await asyncio.gather(*map(one, itertools.cycle(calls), requests)))


def _serialize(request: Message) -> bytes:
    return request.SerializeToString()


async def bursts(address: str, method: str, make: Make, *, name: str, count: int, rounds: int) -> None:
    """Make bursts with pauses, the first one to warm up, and print what was refused."""
    outcomes: Outcomes = []
    async with channels(address, -(-count // CALLS_PER_CONNECTION)) as over:
        for number in range(rounds + 1):
            requests = [make(each) for each in range(number * count, (number + 1) * count)]
            await asyncio.sleep(PAUSE_SECONDS)
            found = await burst(over, method, requests)
            outcomes += found if number else []
    print(describe(f"{name}, {count} at once", outcomes), flush=True)


def describe(name: str, outcomes: Outcomes) -> str:
    """One line of the table."""
    times = [each for status, each in outcomes if status == "RESOURCE_EXHAUSTED"]
    row = "  ".join(f"p{percent} {percentile(times, percent):7.1f} ms" for percent in (50, 99))
    others = ", ".join(f"{count} {status}" for status, count in Counter(status for status, _ in outcomes).items())
    return f"{name:44}  {row}  max {max(times, default=0):7.1f} ms  of {others}"


def text(number: int) -> Message:
    """A short request for text."""
    ids = token_ids([1, *range(100, 150)])
    return generate_request(ids, {"max_tokens": 1, "request_id": f"burst-{number}"})


def image(number: int) -> Message:
    """A picture that nobody else has."""
    return vision_pb2.EncodeRequest(image=picture(number, side=SIDE))


@asynccontextmanager
async def full(address: str) -> AsyncIterator[None]:
    """A decoder that decodes, and whose queue is full."""
    async with channels(address, 1) as (channel,):
        generate: Any = channel.unary_stream(GENERATE, request_serializer=_serialize)

        async def keep(number: int) -> None:
            ids = token_ids([1, *range(100 + number, 120 + number)])
            request = generate_request(ids, {"max_tokens": MAX_TOKENS, "ignore_eos": True})
            while True:
                async for _ in generate(request):
                    pass

        keeping = [asyncio.create_task(keep(number)) for number in range(RUNNING + QUEUED)]
        await asyncio.sleep(1.0)
        yield
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)


async def run(model: Path, *, counts: Sequence[int], rounds: int, folder: Path) -> None:
    """Measure all and print it."""
    address, bare = await start_bare()
    try:
        for count in counts:
            await bursts(address, GENERATE, text, name="bare gRPC", count=count, rounds=rounds)
    finally:
        bare.terminate()
        await bare.wait()
    flags = ("--model", str(model))
    for what, limits in VISION.items():
        vision = Replica("vision", (*flags, *limits), folder / "log")
        await vision.start()
        try:
            for count in counts:
                await bursts(vision.address, ENCODE, image, name=f"vision, few {what}", count=count, rounds=rounds)
            if what == "bytes":
                await _measure_decoder(flags, vision.address, counts=counts, rounds=rounds, folder=folder)
        finally:
            await vision.stop()


async def _measure_decoder(
    flags: Sequence[str], vision: str, *, counts: Sequence[int], rounds: int, folder: Path
) -> None:
    decoder = Replica("decoder", (*flags, *DECODER, "--vision-addresses", vision), folder / "log")
    await decoder.start()
    try:
        async with full(decoder.address):
            for count in counts:
                await bursts(
                    decoder.address, GENERATE, text, name=f"decoder, {RUNNING} decodes", count=count, rounds=rounds
                )
    finally:
        await decoder.stop()


async def start_bare() -> tuple[str, asyncio.subprocess.Process]:
    """A bare server in a process of its own, and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.refusals", BARE),
        cwd=ROOT,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    line = await process.stdout.readline() if process.stdout else b""
    return line.decode().strip(), process


async def serve_bare() -> None:
    """Be a bare server until the process is ended."""

    async def refuse(request: bytes, context: Any) -> None:  # noqa: ANN401 - gRPC's
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    service, method = GENERATE[1:].split("/")
    handlers: dict[str, Any] = {method: grpc.unary_stream_rpc_method_handler(refuse)}
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks refusals", description=__doc__)
    parser.add_argument("--counts", default="20,200", help="calls of a burst, with commas")
    parser.add_argument("--rounds", type=int, default=5, help="bursts of each size that are measured")
    parser.add_argument("--model", type=Path, default=ROOT / "models/demo", help="checkpoint directory")
    parser.add_argument(BARE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_bare:
        asyncio.run(serve_bare())
        return
    counts = [int(count) for count in options.counts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(options.model, counts=counts, rounds=options.rounds, folder=Path(folder)))


if __name__ == "__main__":
    main()
