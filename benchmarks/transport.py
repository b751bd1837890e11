"""Measures one stream of features against what gRPC can do: `python -m benchmarks.transport`.

A second process serves three things: chunks of bytes from a bare grpc.aio server, made beforehand and read by a
client that throws them away; the same as generated messages; and the vision service's own path, from a picture whose
features are cached to checked rows in their final buffer, through the decoder service's own client, over the network
with and without the kernel that copies chunks, and through shared memory. All of them run on the event loop that the
services run on. Rounds alternate between all of them, as a machine's speed changes with time, and each begins with
how fast one core reads what another wrote. The last part has eight pictures arrive at once and tells how long the
receiving event loop stood still at worst (see `benchmarks.arrivals`).
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import numpy as np

from benchmarks.arrivals import report_leaving, report_stalls
from benchmarks.fake_vision import PATCH, fake_info, fake_replica, picture
from benchmarks.handover import handover_speed
from benchmarks.transport_report import report
from common.features.chunk_copy import copy_plainly
from common.features.shared_memory import SharedArena
from common.native.chunks import open_copy
from common.process import freeze_loaded, tune_allocator
from common.server.config import ServerConfig
from common.server.service_loop import run_service
from decoder_service.cache.feature_store import PromptImage
from decoder_service.vision.agreement import Expected
from decoder_service.vision.client import VisionClient
from decoder_service.vision.resolver import VisionResolver
from diptych.v1 import vision_pb2
from vision_service.api.arena_door import ArenaDoor
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import HostImage

SIDE = 1024
SIZES = {8: 1024, 42: 5120}
"""Megabytes of a picture's features, and the width in bfloat16 that makes them."""
CHUNKS = (256 << 10, 1 << 20, 2 << 20, 4 << 20)
LIMITS = (("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0))

Transfer = Callable[[], Awaitable[int]]
"""Moves some bytes, and says how many."""


def encoder_of(width: int) -> Callable[[list[Pixels]], list[HostImage]]:
    """Features of a width, the same for every picture."""
    rows = np.random.default_rng(0).normal(size=(SIDE // PATCH) ** 2 * width).astype("<f4").view("<u2")[1::2].tobytes()
    return lambda images: [HostImage.from_rows(memoryview(rows)) for _ in images]


async def serve() -> None:
    """Serve all that is measured, and tell the ports in one line."""
    bare = grpc.aio.server(options=LIMITS)
    size = max(SIZES) * 2**20
    pieces = {chunk: [bytes(chunk) for _ in range(size // chunk + 1)] for chunk in CHUNKS}

    async def raw(request: bytes, context: object) -> AsyncIterator[bytes]:
        total, chunk = (int(part) for part in request.split())
        for piece in pieces[chunk][: total // chunk]:
            yield piece

    async def generated(request: bytes, context: object) -> AsyncIterator[vision_pb2.EncodeResponse]:
        async for piece in raw(request, context):
            yield vision_pb2.EncodeResponse(chunk=vision_pb2.FeaturesChunk(offset=1, data=piece, crc32=1))

    handlers: dict[str, Any] = {
        "raw": grpc.unary_stream_rpc_method_handler(raw),
        "generated": grpc.unary_stream_rpc_method_handler(
            generated, response_serializer=vision_pb2.EncodeResponse.SerializeToString
        ),
    }
    bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    ports = [bare.add_insecure_port("127.0.0.1:0")]
    await bare.start()
    door = ArenaDoor(SharedArena(2**29))
    door.start()
    replicas = [
        fake_replica(
            fake_info(width=width, dtype="bfloat16"),
            encoder_of(width),
            config=ServerConfig(port=0),
            max_batch_patches=8192,
            max_kept_bytes=2**29,
            door=door,
        )
        for width in SIZES.values()
    ]
    ports += [await replica.start() for replica in replicas]
    sys.stderr.write(" ".join(map(str, ports)) + "\n")
    await asyncio.Event().wait()


def asked(number: int, *, width: int) -> PromptImage:
    """A picture, with what its features must look like."""
    info, image = fake_info(width=width, dtype="bfloat16"), picture(number, side=SIDE)
    spec = info.feature_spec(image, grid=info.preprocessing.patch_grid(SIDE, SIDE), salt=b"")
    return PromptImage(data=image, spec=spec)


def service_transfer(client: VisionClient, *, width: int) -> Transfer:
    """A picture's features, always to the same place."""
    image = asked(0, width=width)
    buffer = np.empty(image.spec.num_bytes, np.uint8).data

    async def transfer() -> int:
        await client.encode(image.data, salt=b"", spec=image.spec, buffer=buffer, request_id="transfer")
        return image.spec.num_bytes

    return transfer


async def client_of(port: int, *, width: int, shared_memory: bool, kernels: bool = True) -> VisionClient:
    """A client that has met its replica."""
    resolver = VisionResolver([f"127.0.0.1:{port}"])
    client = VisionClient(
        resolver,
        expected=Expected(weights_digest=b"t" * 32, feature_width=width),
        shared_memory=shared_memory,
        copy=open_copy() if kernels else copy_plainly,
    )
    await client.start()
    await client.wait_ready()
    return client


def bare_transfer(channel: grpc.aio.Channel, method: str, *, total: int, chunk: int) -> Transfer:
    """A stream of chunks from the bare server."""
    deserializer = vision_pb2.EncodeResponse.FromString if method == "generated" else None
    call: Any = channel.unary_stream(f"/bare/{method}", response_deserializer=deserializer)

    async def transfer() -> int:
        received = 0
        async for piece in call(b"%d %d" % (total, chunk)):
            received += len(piece.chunk.data if method == "generated" else piece)
        return received

    return transfer


async def speed(transfer: Transfer, *, seconds: float) -> float:
    """Megabytes a second."""
    begin, received = time.perf_counter(), 0
    while (now := time.perf_counter()) < begin + seconds:
        received += await transfer()
    return received / (time.perf_counter() - begin) / 1e6 if now else 0.0


async def compare(transfers: Mapping[str, Transfer], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Speeds of all, round by round, and of what all depend on, under "handover"."""
    found: dict[str, list[float]] = {name: [] for name in ("handover", *transfers)}
    for transfer in transfers.values():
        await transfer()
    for _ in range(rounds):
        found["handover"].append(await asyncio.to_thread(handover_speed))
        for name, transfer in transfers.items():
            found[name].append(await speed(transfer, seconds=seconds))
    return found


async def measure(ports: list[int], *, rounds: int, seconds: float) -> bool:
    """Measure all; returns whether the goals are reached."""
    reached = True
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}", options=LIMITS) as channel:
        for (megabytes, width), port in zip(SIZES.items(), ports[1:], strict=True):
            client, sharing = [await client_of(port, width=width, shared_memory=shared) for shared in (False, True)]
            plain = await client_of(port, width=width, shared_memory=False, kernels=False)
            total = (SIDE // PATCH) ** 2 * width * 2
            transfers: dict[str, Transfer] = {
                f"bare, {method}, {chunk >> 10} KiB": bare_transfer(channel, method, total=total, chunk=chunk)
                for method, chunk in (*(("raw", chunk) for chunk in CHUNKS), ("generated", 1 << 20))
            }
            transfers["service"] = service_transfer(client, width=width)
            transfers["service, without kernels"] = service_transfer(plain, width=width)
            transfers["service, shared memory"] = service_transfer(sharing, width=width)
            found = await compare(transfers, rounds=rounds, seconds=seconds)
            reached &= report(megabytes, found.pop("handover"), found)
            freeze_loaded()  # As services do, whose collector would else stop their loop for 20 ms.
            for how, each in (("", client), (", shared memory", sharing)):
                eight = [asked(number, width=width) for number in range(8)]
                reached &= await report_stalls(megabytes, each, eight, how)
                reached &= await report_leaving(megabytes, each, how)
            await plain.close()
    return reached


async def run(*, rounds: int, seconds: float) -> int:
    """Start the server, measure, stop it; returns the exit status."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.transport", "--serve"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        line = await server.stderr.readline() if server.stderr else b""
        return 0 if await measure([int(port) for port in line.split()], rounds=rounds, seconds=seconds) else 1
    finally:
        server.kill()
        await server.wait()


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Measures one stream of features against what gRPC can do.")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each kind")
    parser.add_argument("--seconds", type=float, default=0.1, help="time of a measurement")
    options = parser.parse_args()
    tune_allocator()
    if options.serve:
        run_service(serve())
    else:
        sys.exit(run_service(run(rounds=options.rounds, seconds=options.seconds)))


if __name__ == "__main__":
    main()
