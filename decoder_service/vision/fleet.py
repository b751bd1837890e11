"""The vision replicas that there are: found, watched, and let go when they vanish.

Knows which replicas exist and which may be used: one that speaks our version of the API, holds the weights of our
checkpoint, and agrees with `info`, which the first such replica sets and which then stays: prompts are laid out
by it. Does not know images.

    resolver says it is there --> watched: asked for model and load, its health followed
    resolver says it is gone  --> no new work --> closed when its last call ends
"""

import asyncio
from contextlib import suppress

from common.client.tls import ChannelTlsFiles
from common.features.chunk_copy import CopyChunk
from common.features.vision_info import VisionInfo
from decoder_service.vision.agreement import Expected
from decoder_service.vision.loop_turns import LoopTurns
from decoder_service.vision.replica import VisionReplica
from decoder_service.vision.replica_state import ReplicaState
from decoder_service.vision.resolver import VisionResolver

_PROBE_EVERY = 1.0
"""Seconds between two questions to a ready replica for its load."""
_LOOK_EVERY = 3.0
"""Seconds between two looks at the files of certificates."""
_FIRST_PAUSE = 0.1
_LAST_PAUSE = 5.0
"""Pauses before a replica that is not ready is asked again double from the one to the other."""


class VisionFleet:
    """Watches the replicas that a resolver finds."""

    def __init__(
        self,
        resolver: VisionResolver,
        *,
        expected: Expected,
        tls: ChannelTlsFiles | None,
        copy: CopyChunk,
        shared_memory: bool,
    ) -> None:
        self._resolver = resolver
        self._expected = expected
        self._tls_files = tls
        self._tls = None if tls is None else tls.latest()
        self._turns = LoopTurns()
        self._copy = copy
        self._shared_memory = shared_memory
        self._members: dict[str, VisionReplica] = {}
        self._watches: dict[VisionReplica, list[asyncio.Task[None]]] = {}
        self._leaving: dict[asyncio.Task[None], VisionReplica] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self.info: VisionInfo | None = None
        """What the replicas agree on; None until the first handshake, then it stays."""

    @property
    def replicas(self) -> list[VisionReplica]:
        """All that exist, in whatever state."""
        return list(self._members.values())

    @property
    def ready(self) -> list[VisionReplica]:
        """Those that may get work."""
        return [replica for replica in self._members.values() if replica.state is ReplicaState.READY]

    async def start(self) -> None:
        """Begin to look for replicas; returns at once."""
        self._follow()
        self._tasks.append(asyncio.create_task(self._resolver.run(self._follow), name="vision resolver"))
        if self._tls_files is not None:
            self._tasks.append(asyncio.create_task(self._renew(self._tls_files), name="vision certificates"))

    async def close(self) -> None:
        """Stop looking and close the channels."""
        tasks = [task for watches in self._watches.values() for task in watches]
        tasks += [*self._leaving, *self._tasks]
        # Those on their way out too: a task that is cancelled before it begins closes nothing.
        replicas = [*self.replicas, *self._leaving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watches.clear()
        # None is there any more, so that what one of them loses is not tried with the next.
        self._members.clear()
        for replica in replicas:
            await replica.close()

    async def wait_changed(self) -> None:
        """Wait until something is known of any replica that was not."""
        await self._changed.wait()

    def _follow(self) -> None:
        """Be as the resolver says."""
        addresses = self._resolver.addresses
        for address in addresses:
            if address not in self._members:
                self._join(address)
        for address in self._members.keys() - set(addresses):
            self._leave(address)
        self._notify()

    def _join(self, address: str) -> None:
        replica = VisionReplica(
            address, tls=self._tls, turns=self._turns, copy=self._copy, shared_memory=self._shared_memory
        )
        self._members[address] = replica
        self._watches[replica] = [
            asyncio.create_task(self._watch(replica), name=f"vision {address}"),
            asyncio.create_task(replica.watch_health(), name=f"vision health {address}"),
        ]

    def _leave(self, address: str) -> None:
        replica = self._members.pop(address)
        leaving = asyncio.create_task(self._let_go(replica), name=f"vision leaving {address}")
        self._leaving[leaving] = replica
        leaving.add_done_callback(self._leaving.pop)

    async def _renew(self, files: ChannelTlsFiles) -> None:
        """Connect anew, for ever, whenever certificates have been replaced; calls under way end as they began."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            tls = files.latest()
            if tls is not self._tls:
                self._tls = tls
                for address in list(self._members):
                    self._leave(address)
                    self._join(address)
                self._notify()

    async def _let_go(self, replica: VisionReplica) -> None:
        try:
            for task in self._watches.pop(replica, []):
                task.cancel()
            await replica.wait_unused()
        finally:
            await replica.close()

    async def _watch(self, replica: VisionReplica) -> None:
        """Keep asking one replica, so that its state is true."""
        pause = _FIRST_PAUSE
        while True:
            replica.troubled.clear()
            await replica.probe(self._objection)
            self._notify()
            if replica.is_silent and self.ready:
                # Its connection lives, so they would wait as long as their callers do. Another one can serve them.
                replica.drop_calls()
            if replica.state is ReplicaState.READY:
                pause = _FIRST_PAUSE
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PROBE_EVERY):
                        await replica.troubled.wait()
            elif replica.state is not ReplicaState.BAD:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
            if replica.state is ReplicaState.BAD:
                await asyncio.sleep(_LAST_PAUSE)

    def _notify(self) -> None:
        # A fresh event for the next change, so that nobody who waits misses one.
        self._changed.set()
        self._changed = asyncio.Event()

    def _objection(self, api_version: str, info: VisionInfo) -> str:
        """Why a replica may not be used; empty where it may, the first of which decides what others must say."""
        if objection := self._expected.objection(api_version, info):
            return objection
        if self.info is None:
            self.info = info
        if info.preprocessing.fingerprint() != self.info.preprocessing.fingerprint():
            return "it prepares pictures in another way than the replica that came first"
        if info.dtype != self.info.dtype:
            return "its number type is another than that of the replica that came first"
        return ""
