"""Replicas of both services as processes on ports of their own, which can be restarted one at a time.

Knows processes, their ports and the line `listening`. Does not know what is asked of them.
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from benchmarks.free_port import free_port
from benchmarks.load.pair import environment
from benchmarks.peers.protocol import ROOT
from common.client.health import SERVING, health_status

_START_SECONDS: Final = 120.0


class Replica:
    """One process; it listens on the same port after every restart."""

    def __init__(self, service: str, flags: Sequence[str], log: Path) -> None:
        self.service = service
        self.port = free_port()
        self._flags = ["--port", str(self.port), *flags]
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"{self.service}_service", *self._flags),
                cwd=ROOT,
                env={**environment(), "OMP_NUM_THREADS": "1"},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )
        async with asyncio.timeout(_START_SECONDS):
            await _wait_ready(self.address, self._process)

    async def stop(self) -> int:
        """Ask it to end, and return its exit status when it has."""
        if self._process is None:
            return 0
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        return await self._process.wait()

    async def restart(self) -> int:
        """Stop and start it; returns the exit status of the old process."""
        status = await self.stop()
        await self.start()
        return status


class Replicas:
    """Some of each service; an async context manager that starts and stops all."""

    def __init__(self, model: Path, *, visions: int, decoders: int, log: Path, flags: Sequence[str]) -> None:
        """Take how many of each to run, and flags for all; what they say goes to the file `log`."""
        common = ["--model", str(model), *flags]
        self.visions = [Replica("vision", common, log) for _ in range(visions)]
        addresses = ",".join(vision.address for vision in self.visions)
        self.decoders = [Replica("decoder", [*common, "--vision-addresses", addresses], log) for _ in range(decoders)]

    @property
    def target(self) -> str:
        """What a client connects to: all decoders."""
        return "ipv4:" + ",".join(decoder.address for decoder in self.decoders)

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(replica.start() for replica in (*self.visions, *self.decoders)))
        return self

    async def __aexit__(self, *error: object) -> None:
        for replicas in (self.decoders, self.visions):
            await asyncio.gather(*(replica.stop() for replica in replicas))


async def _wait_ready(address: str, process: asyncio.subprocess.Process) -> None:
    while await asyncio.to_thread(health_status, address) != SERVING:
        if process.returncode is not None:
            raise RuntimeError(f"{address} ended with status {process.returncode} before it was ready")
        await asyncio.sleep(0.1)
