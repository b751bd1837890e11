"""`diptych up`: both services as processes of this machine.

Knows which processes there are, how they are told of each other, and how cores are shared out. Does not know
models or tensors. All that it says on standard output is one line, `ready HOST:PORT`.
"""

import asyncio
import os
import platform
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress

from common.model.cores import num_cores
from common.server.ports import CannotListenError, address, check_free
from common.server.signals import termination_signals
from common.settings.sources import without_settings
from diptych.child import Child, ChildError
from diptych.models import understands_images
from diptych.up_config import ROLES, UpConfig, parse_devices, parse_dtypes
from diptych.up_ports import chosen_ports

_GRACE_SECONDS = 35.0
"""A little more than the services give their callers."""
_LOOPBACK = "127.0.0.1"
_SHARED_BYTES = 256 << 20
"""Of each vision service, used as far as features are under way."""


def share_cores(cores: int, vision_replicas: int) -> tuple[int, int]:
    """Threads of each vision replica and of the decoder, never more than the cores together where possible."""
    vision = max(1, cores // (vision_replicas + 1))
    return vision, max(1, cores - vision_replicas * vision)


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Free ports of this machine, which nobody else is given while inside."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for holder in sockets:
            # With this option on both sides Linux lets another socket listen where this one is only bound.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((_LOOPBACK, 0))
        ports = [holder.getsockname()[1] for holder in sockets]
        if platform.system() != "Linux":
            held.close()
        yield ports


async def up(config: UpConfig) -> int:
    """Run the services until SIGINT, SIGTERM or the end of one of them; returns the exit status."""
    try:
        takes_images = understands_images(config.model_or_demo)
    except (ValueError, OSError) as error:
        return _failed(error, 2)
    replicas = config.vision_replicas if takes_images and not config.local_vision else 0
    try:
        # Before models are loaded for nothing.
        for port, purpose in chosen_ports(config, replicas=replicas):
            check_free(config.host, port, purpose=purpose)
    except ValueError as error:
        return _failed(error, 2)
    except CannotListenError as error:
        return _failed(error, 1)
    services = _Services(config, replicas, is_local=config.local_vision and takes_images)
    with termination_signals() as signals:
        running = asyncio.create_task(services.run())
        await _first(running, signals.get())
        running.cancel()
        status = await _outcome(running)  # says what went wrong before the others have drained
        stopping = asyncio.create_task(services.stop())
        await _first(stopping, signals.get())
        services.kill()  # does nothing unless a second signal was in a hurry
        await stopping
    return status


async def _first(task: asyncio.Task[None], other: Coroutine[None, None, int]) -> None:
    """Return when one of them has ended; only the second is then cancelled."""
    waiting = asyncio.create_task(other)
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _outcome(running: asyncio.Task[None]) -> int:
    """The exit status: 0 where a signal ended the run."""
    try:
        with suppress(asyncio.CancelledError):
            await running
    except (ChildError, TimeoutError) as error:
        return _failed(error, 1)
    return 0


def _failed(error: Exception, status: int) -> int:
    """Say why, and return the exit status."""
    sys.stderr.write(f"diptych up: {str(error) or 'the services were not ready in time'}\n")
    return status


class _Services:
    """The processes, in the order in which they were started."""

    def __init__(self, config: UpConfig, replicas: int, *, is_local: bool) -> None:
        self._config = config
        self._is_local = is_local
        self._replicas = replicas
        self._devices = parse_devices(config.device)
        self._dtypes = parse_dtypes(config.dtype)
        self._threads = dict(zip(ROLES, share_cores(num_cores(), replicas), strict=True))
        self._children: list[Child] = []
        self._health_ports: list[int] = []

    async def run(self) -> None:
        """Start all, say so when all are ready, and raise ChildError when one ends."""
        async with asyncio.timeout(self._config.start_seconds):
            # Their ports are chosen here, so that all services can load their models at the same time.
            with reserved_ports(2 * self._replicas + 1) as reserved:
                ports, self._health_ports = reserved[: self._replicas], reserved[self._replicas :]
                for index, port in enumerate(ports):
                    await self._start_vision(index, port)
                decoder = await self._start_decoder([f"{_LOOPBACK}:{port}" for port in ports])
                # All at once: one that ends is told of while others still load.
                await asyncio.gather(*(child.ready() for child in self._children))
            sys.stdout.write(f"ready {await decoder.address()}\n")
            sys.stdout.flush()
        await asyncio.gather(*(child.exited() for child in self._children))

    async def stop(self) -> None:
        """Stop the decoder first: its last requests may still need the vision services."""
        for child in reversed(self._children):
            await child.stop(_GRACE_SECONDS)

    def kill(self) -> None:
        """End what is still there."""
        for child in self._children:
            child.kill()

    async def _start_vision(self, index: int, port: int) -> Child:
        flags = ["--host", _LOOPBACK, "--port", str(port), "--shared-memory-bytes", str(_SHARED_BYTES)]
        return await self._start("vision", f"vision service {index + 1}", flags, metrics_offset=index + 1)

    async def _start_decoder(self, vision_addresses: list[str]) -> Child:
        flags = ["--host", self._config.host, "--port", str(self._config.port), "--reflection"]
        if vision_addresses:
            flags += ["--vision-addresses", ",".join(vision_addresses)]
        if not self._is_local:
            return await self._start("decoder", "decoder service", flags, metrics_offset=0)
        for name, values in (("device", self._devices), ("dtype", self._dtypes)):
            if "vision" in values:
                flags += [f"--vision-{name}", values["vision"]]
        return await self._start("decoder", "service", flags, metrics_offset=0, module="diptych.local")

    async def _start(
        self, role: str, name: str, flags: list[str], *, metrics_offset: int, module: str | None = None
    ) -> Child:
        arguments = ["-m", module or f"{role}_service", "--model", str(self._config.model_or_demo), *flags]
        if role in self._devices:
            arguments += ["--device", self._devices[role]]
        if role in self._dtypes:
            arguments += ["--dtype", self._dtypes[role]]
        if self._config.deterministic:
            arguments.append("--deterministic")
        if self._config.verify_checksums:
            arguments.append("--verify-checksums")
        metrics_port = self._config.metrics_port
        if metrics_port is not None:
            arguments += ["--metrics-port", str(metrics_port and metrics_port + metrics_offset)]
        health_address = None
        file = {"vision": self._config.vision_config, "decoder": self._config.decoder_config}[role]
        if file is not None:
            # What is in the file may be TLS, which would keep us from asking whether the service is ready.
            port = self._health_ports.pop()
            health_address = address(_LOOPBACK if role == "vision" else self._config.host, port)
            arguments += ["--config", str(file), "--health-port", str(port)]
        child = await Child.start(name, arguments, environment=self._environment(role), health_address=health_address)
        self._children.append(child)
        return child

    def _environment(self, role: str) -> dict[str, str]:
        """Ours without the settings in it, which are not the services'."""
        inherited = without_settings(os.environ)
        # A number of threads that the user has set already stands.
        return {"OMP_NUM_THREADS": str(self._threads[role]), "no_grpc_proxy": _LOOPBACK, **inherited}
