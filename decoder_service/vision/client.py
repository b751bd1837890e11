"""The vision client: image features from whichever vision replica is best placed to make them.

Knows when to try another replica, and when not to. Does not know which replicas there are (`fleet`), which one an
image belongs to (`router`), what one of them is doing (`replica`) or how a stream is checked
(`common.features.features`).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress

from common.client.tls import ChannelTlsFiles
from common.errors import (
    DiptychError,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from common.features.chunk_copy import CopyChunk, copy_in_turns, copy_plainly
from common.features.feature_memory import give_back, lend, reserve
from common.features.feature_spec import FeatureSpec
from common.features.vision_info import VisionInfo
from decoder_service.vision.agreement import Expected
from decoder_service.vision.fleet import VisionFleet
from decoder_service.vision.hedging import hedged
from decoder_service.vision.replica import VisionReplica, is_bad_stream
from decoder_service.vision.replica_state import ReplicaState
from decoder_service.vision.resolver import VisionResolver
from decoder_service.vision.retry_budget import RetryBudget
from decoder_service.vision.router import VisionRouter
from diptych.v1 import vision_pb2 as pb

_MAX_TRIES = 3
_PATIENCE = 0.8
"""Seconds that a request waits for a replica to become ready before it is refused."""


class VisionClient:
    """An `ImageEncoder` over gRPC."""

    def __init__(
        self,
        resolver: VisionResolver,
        *,
        expected: Expected,
        tls: ChannelTlsFiles | None = None,
        hedge_seconds: float | None = None,
        shared_memory: bool = True,
        copy: CopyChunk = copy_plainly,
    ) -> None:
        """Talk to the replicas that `resolver` finds once `start` was called.

        An image that takes longer than `hedge_seconds` is asked for at a second replica too; None for never.
        Without `shared_memory` features come over the network from replicas on this host too.
        `copy` puts chunks of features in their place.
        """
        self._fleet = VisionFleet(resolver, expected=expected, tls=tls, copy=copy, shared_memory=shared_memory)
        self._router = VisionRouter()
        self._hedge_seconds = hedge_seconds
        self._retries = RetryBudget(now=time.monotonic())
        self._busy: dict[str, dict[str, int]] = {}
        self.bad_streams: Counter[str] = Counter()
        """Streams of features that were refused, by reason."""
        self.num_repeated = 0
        """Encodings that were asked of another replica too."""

    @property
    def info(self) -> VisionInfo | None:
        """What the replicas agree on; None until the first handshake, then it stays."""
        return self._fleet.info

    @property
    def replicas(self) -> list[VisionReplica]:
        """All replicas that exist, in whatever state."""
        return self._fleet.replicas

    def require_info(self) -> VisionInfo:
        """The same as `info`, for a request that needs it.

        Raises UnavailableError VISION_UNAVAILABLE, or FailedPreconditionError MODEL_MISMATCH where the
        replicas that answered do not match.
        """
        if self.info is None:
            raise self._refusal(None)
        return self.info

    async def start(self) -> None:
        """Begin to look for the replicas; returns at once."""
        await self._fleet.start()

    async def close(self) -> None:
        """Stop looking and close the channels; encodings under way end with UNAVAILABLE."""
        await self._fleet.close()

    async def wait_ready(self) -> None:
        """Wait for the first successful handshake."""
        while self.info is None:
            await self._fleet.wait_changed()

    async def encode(
        self, image: bytes, *, salt: bytes, spec: FeatureSpec, buffer: memoryview, request_id: str
    ) -> None:
        """Fill `buffer` with the features of one picture file, trying other replicas where one fails.

        Raises a replica's refusal as it is; UnavailableError VISION_UNAVAILABLE within a second where no
        replica answers; FailedPreconditionError MODEL_MISMATCH where those that answer do not match;
        InternalError EMBED_CORRUPT or EMBED_INVALID where streams were bad every time.
        """
        request = pb.EncodeRequest(image=image, salt=salt, request_id=request_id)
        tried: list[VisionReplica] = []
        full: list[VisionReplica] = []
        failure: DiptychError | None = None
        for _ in range(_MAX_TRIES):
            replica = await self._choose(request, spec, tried, full)
            if replica is None or not self._may_try(failure):
                break
            tried.append(replica)
            try:
                await self._attempt(replica, request, spec, buffer, tried)
                return
            except DiptychError as error:
                if isinstance(error, ResourceExhaustedError):
                    full.append(replica)
                elif not isinstance(error, UnavailableError) and not is_bad_stream(error):
                    raise
                failure = error
        raise self._refusal(failure)

    def _may_try(self, failure: DiptychError | None) -> bool:
        """Whether the budget has one more try in it; a first one is always allowed."""
        if failure is None:
            self._retries.called(now=time.monotonic())
            return True
        return self._may_repeat()

    def _may_repeat(self) -> bool:
        may = self._retries.take(now=time.monotonic())
        self.num_repeated += may
        return may

    async def _choose(
        self,
        request: pb.EncodeRequest,
        spec: FeatureSpec,
        tried: Sequence[VisionReplica],
        full: Sequence[VisionReplica],
    ) -> VisionReplica | None:
        """The best replica for the next try; None where waiting for one would be of no use.

        One that was not tried goes before one that was. A full replica is not asked a second time.
        """
        ready = self._fleet.ready or await self._wait_ready_replicas()
        left = [replica for replica in ready if replica not in full]
        fresh = [replica for replica in left if replica not in tried]
        return self._route(fresh or left, request, spec) if left else None

    async def _wait_ready_replicas(self) -> list[VisionReplica]:
        """Those that are ready after a moment; none where waiting for one would be of no use."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while not self._fleet.ready and not _all_mismatch(self.replicas):
                    await self._fleet.wait_changed()
        return self._fleet.ready

    def _route(self, ready: Sequence[VisionReplica], request: pb.EncodeRequest, spec: FeatureSpec) -> VisionReplica:
        if len(ready) == 1:
            return ready[0]
        address = self._router.choose(
            spec.image_hash,
            {replica.address: replica.pending_patches for replica in ready},
            busy=self._busy.get(request.request_id, ()),
            now=time.monotonic(),
        )
        return next(replica for replica in ready if replica.address == address)

    async def _attempt(
        self,
        replica: VisionReplica,
        request: pb.EncodeRequest,
        spec: FeatureSpec,
        buffer: memoryview,
        tried: list[VisionReplica],
    ) -> None:
        """One try, or two beside each other where the first takes long and another replica is there."""
        first = self._send(replica, request, spec, buffer)
        if self._hedge_seconds is None:
            await first
            return
        spare: list[memoryview] = []

        def second() -> Coroutine[None, None, None] | None:
            others = [other for other in self._fleet.ready if other not in tried]
            if not others or not self._may_repeat():
                return None
            other = self._route(others, request, spec)
            tried.append(other)
            # A buffer of its own: two replicas need not agree in the last bit.
            spare.append(lend(reserve(spec.num_bytes), then=give_back))
            return self._send(other, request, spec, spare[0])

        if await hedged(first, second, after=self._hedge_seconds):
            await copy_in_turns(buffer, spare[0])

    async def _send(
        self, replica: VisionReplica, request: pb.EncodeRequest, spec: FeatureSpec, buffer: memoryview
    ) -> None:
        self._router.sent(replica.address, num_patches=spec.grid.num_patches, now=time.monotonic())
        with self._placed(request.request_id, replica.address):
            try:
                await replica.encode(request, spec=spec, buffer=buffer)
            except InternalError as error:
                if is_bad_stream(error):
                    self.bad_streams[error.reason] += 1
                raise
        self._router.arrived(spec.image_hash, replica.address)

    @contextmanager
    def _placed(self, request_id: str, address: str) -> Iterator[None]:
        """Remember that a replica has an image of a request under way."""
        busy = self._busy.setdefault(request_id, {})
        busy[address] = busy.get(address, 0) + 1
        try:
            yield
        finally:
            busy[address] -= 1
            if not busy[address]:
                del busy[address]
            if not busy:
                self._busy.pop(request_id, None)

    def _refusal(self, failure: DiptychError | None) -> DiptychError:
        states = {replica.state for replica in self.replicas}
        if ReplicaState.MISMATCH in states <= {ReplicaState.MISMATCH, ReplicaState.UNREACHABLE}:
            return FailedPreconditionError("MODEL_MISMATCH", "no vision replica serves the encoder of this model")
        if failure is not None and not isinstance(failure, UnavailableError):
            return failure
        return UnavailableError("VISION_UNAVAILABLE", "no vision replica answers", retry_after=1.0)


def _all_mismatch(replicas: Sequence[VisionReplica]) -> bool:
    return all(replica.state is ReplicaState.MISMATCH for replica in replicas)
