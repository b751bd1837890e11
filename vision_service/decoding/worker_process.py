"""The service's handle on one decode worker: start it, exchange one message, end it.

Knows processes and pipes. Does not know queues or requests (see `decode_pool`). An exchange that fails
leaves the pipes out of step, so the only thing to do with a worker after that is `close`.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from vision_service.decoding.decode_worker import DecodeSettings
from vision_service.decoding.frames import PREFIX, pack_head, parse_header

_MAX_HEADER_SIZE = 4096
_PIPE_BUFFER = 1 << 20
_START_SECONDS = 60.0
"""Time to import what a worker needs, for which a second is enough where nothing else is wrong."""


class WorkerBrokenError(Exception):
    """The worker died or answered nonsense."""


class WorkerProcess:
    """A running decode worker, made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, *, max_payload_size: int) -> None:
        self._process = process
        self._max_payload_size = max_payload_size

    @classmethod
    async def start(cls, settings: DecodeSettings, *, max_payload_size: int) -> "WorkerProcess":
        """Start a worker and wait until it is ready, for a minute at most. Raises WorkerBrokenError, OSError."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "vision_service.decoding.decode_worker", settings.to_json()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_PIPE_BUFFER,
            # Away from the terminal: its Ctrl-C is for the service, which lets images under way end.
            start_new_session=True,
            # Nothing of the service's environment: a worker has no use for its tokens. One thread is enough.
            env={"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        )
        worker = cls(process, max_payload_size=max_payload_size)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await worker._receive()
        except BaseException:
            await worker.close()
            raise
        return worker

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process has not been seen to end."""
        return self._process.returncode is None

    async def exchange(self, payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Send an image, return the reply's header and payload.

        Raises WorkerBrokenError, or TimeoutError where the worker used up its processor time.
        """
        pipe = self._process.stdin
        if pipe is None:
            raise WorkerBrokenError
        try:
            pipe.write(pack_head({}, payload_size=len(payload)))
            pipe.write(payload)
            await pipe.drain()
        except ConnectionError as error:
            raise WorkerBrokenError from error
        return await self._receive()

    async def close(self) -> None:
        """Kill the process and wait until it is gone."""
        if self._process.returncode is None:
            self._process.kill()
        # Reads what is left in the pipes, so that their transports close as well.
        await self._process.communicate()

    async def _receive(self) -> tuple[dict[str, Any], bytes]:
        pipe = self._process.stdout
        if pipe is None:
            raise WorkerBrokenError
        try:
            header_size, payload_size = PREFIX.unpack(await pipe.readexactly(PREFIX.size))
            if header_size > _MAX_HEADER_SIZE or payload_size > self._max_payload_size:
                raise WorkerBrokenError
            header = parse_header(await pipe.readexactly(header_size))
            return header, await pipe.readexactly(payload_size)
        except EOFError as error:
            if await self._process.wait() == -signal.SIGXCPU:
                raise TimeoutError from error
            raise WorkerBrokenError from error
        except (ValueError, ConnectionError) as error:
            raise WorkerBrokenError from error
