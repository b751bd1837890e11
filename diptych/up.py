"""`diptych up`: both services as processes of this machine.

Knows which processes there are, how they are told of each other, and how cores are shared out. Does not know
models or tensors. All that it says on standard output is one line, `ready HOST:PORT`.
"""

import asyncio
import os
import platform
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common.model_settings import DtypeChoice
from common.process import num_cores
from common.settings import setting
from diptych.child import Child, ChildError
from diptych.models import demo_model, understands_images

_GRACE_SECONDS = 35.0
"""A little more than the services give their callers."""
_LOOPBACK = "127.0.0.1"
_ROLES = ("vision", "decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpConfig:
    """What to run."""

    model: Path | None = setting(None, help="checkpoint directory; the demo model where unset")
    host: str = setting("127.0.0.1", help="address that the decoder service listens on")
    port: int = setting(50051, help="its port; 0 takes a free one", minimum=0, maximum=65535)
    metrics_port: int | None = setting(
        None,
        help="metrics port of the decoder service, the next ones being the vision replicas'; 0 takes free ones",
        minimum=0,
        maximum=65535,
    )
    vision_replicas: int = setting(1, help="vision services to start", minimum=1, maximum=64)
    device: str | None = setting(None, help="device of all services, or vision=DEVICE,decoder=DEVICE")
    dtype: str | None = setting(None, help="type of weights of all services, or vision=TYPE,decoder=TYPE")
    deterministic: bool = setting(
        False, help="the same answer, bit for bit, whatever else is computed beside it; slower"
    )
    verify_checksums: bool = setting(False, help="check the files against the model's SHA256SUMS while they load")
    start_seconds: float = setting(600.0, help="longest time until all are ready", minimum=1, maximum=86400)

    def __post_init__(self) -> None:
        parse_devices(self.device)
        parse_dtypes(self.dtype)


def parse_devices(text: str | None) -> Mapping[str, str]:
    """The device of each role that has one. Raises ValueError for a role that does not exist."""
    return _by_role(text, "--device", "DEVICE")


def parse_dtypes(text: str | None) -> Mapping[str, str]:
    """The type of each role that has one. Raises ValueError for a role or a type that does not exist."""
    dtypes = _by_role(text, "--dtype", "TYPE")
    known = [choice.value for choice in DtypeChoice]
    for dtype in dtypes.values():
        if dtype not in known:
            raise ValueError(f"--dtype must be one of {', '.join(known)}, got {dtype!r}")
    return dtypes


def _by_role(text: str | None, flag: str, word: str) -> Mapping[str, str]:
    if text is None:
        return {}
    if "=" not in text:
        return dict.fromkeys(_ROLES, text)
    values = dict(part.strip().split("=", 1) for part in text.split(",") if "=" in part)
    if len(values) != len(text.split(",")) or not values.keys() <= set(_ROLES):
        raise ValueError(f"{flag} must be {word} or vision={word},decoder={word}, got {text!r}")
    return values


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
    model = config.model or demo_model()
    try:
        replicas = config.vision_replicas if understands_images(model) else 0
    except (ValueError, OSError) as error:
        sys.stderr.write(f"diptych up: {error}\n")
        return 2
    services = _Services(config, model, replicas)
    signals = _signals()
    running = asyncio.create_task(services.run())
    await _first(running, signals.get())
    running.cancel()
    stopping = asyncio.create_task(services.stop())
    await _first(stopping, signals.get())
    services.kill()  # does nothing unless a second signal was in a hurry
    await stopping
    return await _outcome(running)


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
        sys.stderr.write(f"diptych up: {str(error) or 'the services were not ready in time'}\n")
        return 1
    return 0


class _Services:
    """The processes, in the order in which they were started."""

    def __init__(self, config: UpConfig, model: Path, replicas: int) -> None:
        self._config = config
        self._model = model
        self._replicas = replicas
        self._devices = parse_devices(config.device)
        self._dtypes = parse_dtypes(config.dtype)
        self._threads = dict(zip(_ROLES, share_cores(num_cores(), replicas), strict=True))
        self._children: list[Child] = []

    async def run(self) -> None:
        """Start all, say so when all are ready, and raise ChildError when one ends."""
        async with asyncio.timeout(self._config.start_seconds):
            # Their ports are chosen here, so that all services can load their models at the same time.
            with reserved_ports(self._replicas) as ports:
                for index, port in enumerate(ports):
                    await self._start_vision(index, port)
                decoder = await self._start_decoder([f"{_LOOPBACK}:{port}" for port in ports])
                for child in self._children:
                    await child.ready()
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
        flags = ["--host", _LOOPBACK, "--port", str(port)]
        return await self._start("vision", f"vision service {index + 1}", flags, metrics_offset=index + 1)

    async def _start_decoder(self, vision_addresses: list[str]) -> Child:
        flags = ["--host", self._config.host, "--port", str(self._config.port), "--reflection"]
        if vision_addresses:
            flags += ["--vision-addresses", ",".join(vision_addresses)]
        return await self._start("decoder", "decoder service", flags, metrics_offset=0)

    async def _start(self, role: str, name: str, flags: list[str], *, metrics_offset: int) -> Child:
        arguments = ["-m", f"{role}_service", "--model", str(self._model), *flags]
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
        # A number that the user has set already stands.
        environment = {"OMP_NUM_THREADS": str(self._threads[role]), "no_grpc_proxy": _LOOPBACK, **os.environ}
        child = await Child.start(name, arguments, environment=environment)
        self._children.append(child)
        return child


def _signals() -> asyncio.Queue[int]:
    """The SIGTERMs and SIGINTs from now on."""
    arrived: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, arrived.put_nowait, number)
    return arrived
