"""Measures where pictures go that come again: `python -m benchmarks.spread_vision`.

Runs vision replicas as processes on addresses of the loopback network, asks them through the decoder service's own
client for popular and rare pictures, and reads off their caches: how often three caches hit against one of their size
together, and how much more than the mean the busiest of three sends. Their encoder is replaced by zeros.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.fake_vision import PATCH, fake_info, fake_replica, pictures
from common.server.config import ServerConfig
from decoder_service.vision.agreement import Expected
from decoder_service.vision.client import VisionClient
from decoder_service.vision.resolver import VisionResolver
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import HostImage

SIDE = 1024
PATCHES = (SIDE // PATCH) ** 2
WIDTH = 8
INFO = fake_info(width=WIDTH, dtype="bfloat16")
IMAGE_BYTES = PATCHES * WIDTH * 2
PORT = 50972
CALLERS = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the replicas did with the pictures that each was sent."""

    hits: tuple[int, ...]
    misses: tuple[int, ...]

    @property
    def hit_rate(self) -> float:
        """Pictures that were not encoded, of all."""
        return sum(self.hits) / (sum(self.hits) + sum(self.misses))

    @property
    def busiest(self) -> float:
        """The most that one replica was sent, in means."""
        sent = [hits + misses for hits, misses in zip(self.hits, self.misses, strict=True)]
        return max(sent) * len(sent) / sum(sent)


def encode(images: list[Pixels]) -> list[HostImage]:
    """Features of zeros."""
    return [HostImage.from_rows(memoryview(bytes(IMAGE_BYTES))) for _ in images]


async def serve(host: str, num_kept: int) -> None:
    """Be one replica until SIGTERM, then tell hits and misses."""
    config = ServerConfig(host=host, port=PORT)
    kept = num_kept * IMAGE_BYTES
    replica = fake_replica(INFO, encode, config=config, max_batch_patches=8192, max_kept_bytes=kept)
    await replica.run()
    counts = replica.cache.counts
    print(counts.hits + counts.joined, counts.misses, flush=True)


async def ask(*, replicas: int, num_kept: int, order: list[int]) -> Outcome:
    """Ask so many replicas, whose caches hold `num_kept` pictures each, for pictures in an order."""
    hosts = [f"127.0.1.{index + 1}" for index in range(replicas)]
    command = (sys.executable, "-m", "benchmarks.spread_vision", "--kept", str(num_kept), "--serve")
    processes = [await asyncio.create_subprocess_exec(*command, host, stdout=asyncio.subprocess.PIPE) for host in hosts]
    outputs = [process.stdout for process in processes if process.stdout is not None]
    for output in outputs:
        await output.readline()
    client = VisionClient(
        VisionResolver([f"{host}:{PORT}" for host in hosts]),
        expected=Expected(weights_digest=INFO.weights_digest, feature_width=WIDTH),
    )
    await client.start()
    async with asyncio.timeout(60):
        while len([replica for replica in client.replicas if replica.info]) < replicas:
            await asyncio.sleep(0.05)
    files = [file for file, _ in zip(pictures(side=SIDE), range(max(order) + 1), strict=False)]
    waiting = iter(order)
    await asyncio.gather(*(_call(client, files, waiting) for _ in range(CALLERS)))
    await client.close()
    for process in processes:
        process.terminate()
    counts = [tuple(int(part) for part in (await output.read()).split()) for output in outputs]
    for process in processes:
        await process.wait()
    return Outcome(tuple(hits for hits, _ in counts), tuple(misses for _, misses in counts))


async def _call(client: VisionClient, files: list[bytes], waiting: Iterator[int]) -> None:
    grid = INFO.preprocessing.patch_grid(SIDE, SIDE)
    for number in waiting:
        spec = INFO.feature_spec(files[number], grid=grid, salt=b"")
        buffer = memoryview(bytearray(spec.num_bytes))
        await client.encode(files[number], salt=b"", spec=spec, buffer=buffer, request_id=spec.image_hash.hex())


def popular(*, images: int, count: int, exponent: float) -> list[int]:
    """Pictures of which a few are asked for often."""
    weights = [1 / (rank + 1) ** exponent for rank in range(images)]
    return random.Random(3).choices(range(images), weights, k=count)  # noqa: S311 - a benchmark


async def run(count: int) -> int:
    """Measure both; returns the exit status."""
    order = popular(images=150, count=count, exponent=1.0)
    one = await ask(replicas=1, num_kept=60, order=order)
    three = await ask(replicas=3, num_kept=20, order=order)
    skewed = await ask(replicas=3, num_kept=150, order=popular(images=150, count=count, exponent=1.5))
    print(f"one cache of 60 pictures hits {one.hit_rate:.1%}, three of 20 hit {three.hit_rate:.1%}")
    print(f"the busiest of three is sent {three.busiest:.2f} times the mean, {skewed.busiest:.2f} with few favourites")
    return 0 if three.hit_rate >= 0.95 * one.hit_rate and max(three.busiest, skewed.busiest) <= 1.3 else 1


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Measures where pictures go that come again.")
    parser.add_argument("--serve", metavar="HOST", help=argparse.SUPPRESS)
    parser.add_argument("--kept", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=3000, help="pictures asked for in each measurement")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, options.kept))
    else:
        sys.exit(asyncio.run(run(options.count)))


if __name__ == "__main__":
    main()
