"""Measures how encoding grows with vision replicas: `python -m benchmarks.scale_vision`.

Runs replicas as processes on addresses of the loopback network, behind a name, and asks them for new pictures
through the decoder service's own client while their number goes 1, 2, 4, 1 and, with --rounds, while they are
killed, frozen and stopped. Their encoder and decode pool are replaced by a timed delay, so that a machine with few
cores can tell what the services in between cost; all else is the real thing.
"""

import argparse
import asyncio
import itertools
import signal
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks.fake_vision import PATCH, fake_info, fake_replica, pictures
from common.errors import DiptychError
from common.features.feature_spec import FeatureSpec
from common.server.config import ServerConfig
from common.telemetry.logs import set_up_logging
from decoder_service.vision.agreement import Expected
from decoder_service.vision.client import VisionClient
from decoder_service.vision.resolver import VisionResolver
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import HostImage

SIDE = 128
WIDTH = 64
PORT = 50952
SECONDS_PER_PATCH = 0.002
"""So slow that a fraction of a core does all the rest for four replicas."""
INFO = fake_info(width=WIDTH, dtype="float32")


def encode_slowly(images: list[Pixels]) -> list[HostImage]:
    """Features of zeros, after as long as an encoder would have taken."""
    lengths = [image.shape[0] * image.shape[1] // PATCH**2 for image in images]
    time.sleep(sum(lengths) * SECONDS_PER_PATCH)
    return [HostImage.from_rows(memoryview(bytes(length * WIDTH * 4))) for length in lengths]


async def serve(host: str) -> None:
    """Be one replica until SIGTERM."""
    config = ServerConfig(host=host, port=PORT)
    await fake_replica(INFO, encode_slowly, config=config, max_batch_patches=128, max_kept_bytes=2**26).run()


class Fleet:
    """Replicas as processes, and the name service that knows them."""

    def __init__(self) -> None:
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._numbers = itertools.count(2)

    async def look_up(self, host: str, port: int) -> list[str]:
        """What a headless service would answer."""
        return [f"{address}:{port}" for address in self.processes]

    async def scale(self, count: int) -> None:
        """Start replicas, or stop the youngest by SIGTERM."""
        while len(self.processes) < count:
            host = f"127.0.0.{next(self._numbers)}"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.scale_vision", "--serve", host), stdout=asyncio.subprocess.PIPE
            )
            if process.stdout is not None:
                await process.stdout.readline()
            self.processes[host] = process
        while len(self.processes) > count:
            _, process = self.processes.popitem()
            process.send_signal(signal.SIGTERM)

    def send(self, number: int) -> str:
        """Send the youngest replica a signal; where it is to die it leaves the name, as a pod would."""
        host = list(self.processes)[-1]
        self.processes[host].send_signal(number)
        if number == signal.SIGKILL:
            del self.processes[host]
        return host


class Load:
    """Callers that ask for one new picture after the other."""

    def __init__(self, client: VisionClient) -> None:
        self.num_done = 0
        self.failures: list[str] = []
        self._client = client
        self._pictures = pictures(side=SIDE)

    async def run(self) -> None:
        """Ask until cancelled."""
        grid = INFO.preprocessing.patch_grid(SIDE, SIDE)
        for picture in self._pictures:
            spec = INFO.feature_spec(picture, grid=grid, salt=b"")
            await self._ask(picture, spec)

    async def _ask(self, picture: bytes, spec: FeatureSpec) -> None:
        buffer = memoryview(bytearray(spec.num_bytes))
        try:
            await self._client.encode(picture, salt=b"", spec=spec, buffer=buffer, request_id=spec.image_hash.hex())
            self.num_done += 1
        except DiptychError as error:
            self.failures.append(error.reason)


async def measure(fleet: Fleet, load: Load, client: VisionClient, *, count: int, seconds: float) -> float:
    """Images a second with so many replicas, once all of them are in use."""
    begin = time.monotonic()
    await fleet.scale(count)
    await _until(lambda: len(client.replicas) == count and all(each.info for each in client.replicas))
    settled = time.monotonic() - begin
    await asyncio.sleep(1.0)
    before, begin = load.num_done, time.monotonic()
    await asyncio.sleep(seconds)
    rate = (load.num_done - before) / (time.monotonic() - begin)
    sys.stdout.write(f"{count} replicas: {rate:7.1f} images/s, after {settled:.1f} s, {len(load.failures)} failures\n")
    return rate


async def break_things(fleet: Fleet, load: Load, *, rounds: int) -> None:
    """Kill, freeze and stop replicas under load, never all of them."""
    for round_ in range(rounds):
        await fleet.scale(3)
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
            await fleet.scale(3)
            await asyncio.sleep(1.0 + 0.37 * (round_ % 5))
            before = load.num_done
            host = fleet.send(number)
            await asyncio.sleep(7.0 if number == signal.SIGSTOP else 2.0)
            if number == signal.SIGSTOP:
                fleet.processes[host].send_signal(signal.SIGCONT)
            if number == signal.SIGTERM:
                del fleet.processes[host]
            done, failed = load.num_done - before, len(load.failures)
            sys.stdout.write(f"{number.name}: {done} answers meanwhile, {failed} failures so far\n")


async def run(*, seconds: float, callers: int, rounds: int) -> int:
    """Measure all; returns the exit status."""
    fleet = Fleet()
    await fleet.scale(1)
    resolver = VisionResolver([f"dns:///vision:{PORT}"], lookup=fleet.look_up)
    client = VisionClient(resolver, expected=Expected(weights_digest=INFO.weights_digest, feature_width=WIDTH))
    await client.start()
    await client.wait_ready()
    load = Load(client)
    tasks = [asyncio.create_task(load.run()) for _ in range(callers)]
    try:
        rates = [await measure(fleet, load, client, count=count, seconds=seconds) for count in (1, 2, 4, 1)]
        await break_things(fleet, load, rounds=rounds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()
        processes = list(fleet.processes.values())
        await fleet.scale(0)
        await asyncio.gather(*(process.wait() for process in processes))
    sys.stdout.write(f"4 replicas do {rates[2] / rates[0]:.2f} times what one does\n")
    return 1 if load.failures or rates[2] < 3.6 * rates[0] else 0


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.05)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Measures how encoding grows with vision replicas.")
    parser.add_argument("--serve", metavar="HOST", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=8.0, help="time of each measurement")
    parser.add_argument("--callers", type=int, default=64, help="pictures asked for at the same time")
    parser.add_argument("--rounds", type=int, default=0, help="how often replicas are killed, frozen and stopped")
    options = parser.parse_args()
    work: Awaitable[int | None] = (
        serve(options.serve)
        if options.serve
        else run(seconds=options.seconds, callers=options.callers, rounds=options.rounds)
    )
    if not options.serve:
        set_up_logging()
    sys.exit(asyncio.run(_awaited(work)) or 0)


async def _awaited(work: Awaitable[int | None]) -> int | None:
    return await work


if __name__ == "__main__":
    main()
