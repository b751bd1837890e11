"""What is compared: our services and the peers' servers, each as something that answers planned requests.

Knows how each is started. Does not know loads. A peer is paused while others are measured; ours, which does nothing
without requests, is not.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.checkpoints import checkpoint
from benchmarks.load.pair import running_pair, service_flags
from benchmarks.load.prompts import PromptMaker
from benchmarks.load.records import RequestRecord
from benchmarks.load.sender import MAX_CALLS, Sender
from benchmarks.load.workload import RequestPlan
from benchmarks.peers.environments import LOGS
from benchmarks.served.peers import ServedPeer
from benchmarks.served.process import ServerError
from benchmarks.served.sender import OpenAiSender
from common.client.client import AsyncDiptychClient


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One of them, ready."""

    name: str
    version: str
    send: Callable[[RequestPlan], Awaitable[RequestRecord]]
    pause: Callable[[], None] = lambda: None
    resume: Callable[[], None] = lambda: None
    processor_seconds: Callable[[], float]

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run meanwhile. That it has ended is not said here: its requests fail, and they say why."""
        with suppress(ProcessLookupError):
            self.resume()
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                self.pause()


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """All that could be started."""

    systems: Sequence[System]
    """Ours first."""
    not_run: Mapping[str, str]
    """Peers that are not among them, and why."""


@asynccontextmanager
async def running_systems(
    model: str,
    peers: Sequence[ServedPeer],
    *,
    folder: Path,
    cores: Sequence[int],
    settings: Sequence[str],
    ours: Mapping[str, Sequence[str]],
) -> AsyncIterator[Running]:
    """Start one after the other, and pause each peer until its turn; `ours` names our own with their flags."""
    async with AsyncExitStack() as stack:
        systems, not_run = [], {}
        for peer in peers:
            if peer.binaries(folder) is None:
                not_run[peer.name] = "not installed"
                continue
            try:
                server, ask = stack.enter_context(peer.running(folder, model, cores))
            except ServerError as error:
                not_run[peer.name] = str(error)
                continue
            server.pause()
            systems.append(
                System(
                    name=peer.name,
                    version=peer.version(folder),
                    send=OpenAiSender(server.port, ask).send,
                    pause=server.pause,
                    resume=server.resume,
                    processor_seconds=server.processor_seconds,
                )
            )
        flags = stack.enter_context(service_flags(settings))
        own = [await _ours(stack, name, checkpoint(model), cores, [*flags, *its_own]) for name, its_own in ours.items()]
        yield Running(systems=[*own, *systems], not_run=not_run)


async def _ours(stack: AsyncExitStack, name: str, model: Path, cores: Sequence[int], flags: Sequence[str]) -> System:
    log = LOGS / f"served-{name.replace(' ', '-')}.log"
    pair = stack.enter_context(running_pair(model, cores=cores, log=log, flags=flags))
    client = await stack.enter_async_context(AsyncDiptychClient(pair.address, max_calls=MAX_CALLS))
    prompts = PromptMaker(client, await client.get_model_info(timeout=60))
    return System(
        name=name,
        version=f"torch {torch.__version__}",
        send=Sender(client, prompts).send,
        processor_seconds=pair.processor_seconds,
    )
