"""One service as a child process, from its start to its end.

Knows processes, the line `listening HOST:PORT` and health. Does not know which services there are.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.process import die_with_parent

Result = TypeVar("Result")

_LISTENING = b"listening "


class ChildError(Exception):
    """A child ended by itself; the message is one line."""


class Child:
    """A service in a process group of its own, so that a terminal's Ctrl-C reaches only its parent."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, *, health_address: str | None) -> None:
        """Watch a process; use `start` to make one."""
        self.name = name
        self._health_address = health_address
        self._process = process
        self._listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._output = asyncio.create_task(self._read_output())
        self._exited = asyncio.create_task(self._wait())

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        health_address: str | None = None,
    ) -> Self:
        """Start `python ARGUMENTS`; the kernel kills it if this process dies.

        It is asked for its health where it listens, or at `health_address`.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            process_group=0,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        return cls(name, process, health_address=health_address)

    async def address(self) -> str:
        """The HOST:PORT that the service listens on, once it does. Raises ChildError if it ends before."""
        return await self._unless_exited(asyncio.shield(self._listening))

    async def ready(self) -> None:
        """Return when the service says that it is ready. Raises ChildError if it ends before."""
        address = await self.address()
        await self._unless_exited(_wait_serving(self._health_address or address))

    async def exited(self) -> None:
        """Raise ChildError when the process has ended."""
        raise ChildError(_epitaph(self.name, await asyncio.shield(self._exited)))

    async def stop(self, grace_seconds: float) -> None:
        """Ask the service to end, and kill its process group after the grace time."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(self._exited), grace_seconds)
        except TimeoutError:
            self.kill()
            await self._exited
        await asyncio.wait({self._output}, timeout=1)
        self._output.cancel()

    def kill(self) -> None:
        """End the service and what it started, at once."""
        self._signal(signal.SIGKILL)

    async def _wait(self) -> int:
        status = await self._process.wait()
        self._signal(signal.SIGKILL)  # what the service started must not outlive it
        return status

    def _signal(self, number: signal.Signals) -> None:
        if not self._exited.done():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _unless_exited(self, work: Awaitable[Result]) -> Result:
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait({working, self._exited}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
        finally:
            working.cancel()
        raise ChildError(_epitaph(self.name, self._exited.result()))

    async def _read_output(self) -> None:
        """Find the line with the address, and pass all others on to standard error."""
        output = self._process.stdout
        if output is None:
            return
        async for line in _lines(output):
            if line.startswith(_LISTENING) and not self._listening.done():
                self._listening.set_result(line.removeprefix(_LISTENING).decode().strip())
            else:
                # Read on where nobody takes it, or the service would stand still with a full pipe.
                with suppress(OSError):
                    sys.stderr.write(line.decode(errors="replace"))


async def _lines(output: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines with their ends; one that is longer than the reader's buffer comes in pieces."""
    while True:
        try:
            yield await output.readuntil()
        except asyncio.LimitOverrunError as error:
            yield await output.read(error.consumed)
        except asyncio.IncompleteReadError as error:
            yield error.partial
            return


async def _wait_serving(address: str) -> None:
    # A web proxy that the environment may name is no way to a process of this machine.
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods
        request = health_pb2.HealthCheckRequest(service="readiness")
        while True:
            with suppress(grpc.aio.AioRpcError):
                async for response in stub.Watch(request):
                    if response.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            await asyncio.sleep(0.1)


def _epitaph(name: str, status: int) -> str:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"the {name} {how}"
