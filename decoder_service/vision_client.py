"""The vision client: image features from whichever vision replica is best placed to make them.

Knows the replicas, which of them may be used, and when to try another. Does not know how a stream is checked
(`common.features`) or what a replica is doing (`vision_replica`). A replica may be used when it speaks our
version of the API, holds the weights of our checkpoint, and agrees with `info`, which the first such replica
sets and which then stays: prompts are laid out by it.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress

import grpc

from common.errors import (
    DiptychError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)
from common.features import FeatureSpec
from common.version import API_VERSION
from decoder_service.image_encoder import VisionInfo
from decoder_service.vision_replica import ReplicaState, VisionReplica, is_bad_stream
from diptych.v1 import vision_pb2 as pb

_MAX_TRIES = 3
_PATIENCE = 0.8
"""Seconds that a request waits for a replica to become ready before it is refused."""
_PROBE_EVERY = 1.0
"""Seconds between two questions to a ready replica for its load."""
_FIRST_PAUSE = 0.1
_LAST_PAUSE = 5.0
"""Pauses before a replica that is not ready is asked again double from the one to the other."""


class VisionClient:
    """An `ImageEncoder` over gRPC with a fixed list of replicas."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        expected_digest: bytes,
        expected_width: int,
        api_version: str = API_VERSION,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Talk to the replicas at `addresses` (HOST:PORT) once `start` was called."""
        self._addresses = addresses
        self._expected_digest = expected_digest
        self._expected_width = expected_width
        self._api_major = _major(api_version)
        self._credentials = credentials
        self._info: VisionInfo | None = None
        self._replicas: list[VisionReplica] = []
        self._watches: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    @property
    def info(self) -> VisionInfo | None:
        """What the replicas agree on; None until the first handshake, then it stays."""
        return self._info

    def require_info(self) -> VisionInfo:
        """The same, for a request that needs it.

        Raises UnavailableError VISION_UNAVAILABLE, or FailedPreconditionError MODEL_MISMATCH where the
        replicas that answered do not match.
        """
        if self._info is None:
            raise self._refusal(None)
        return self._info

    async def start(self) -> None:
        """Begin to look for the replicas; returns at once."""
        for address in self._addresses:
            replica = VisionReplica(address, credentials=self._credentials)
            self._replicas.append(replica)
            self._watches.append(asyncio.create_task(self._watch(replica), name=f"vision {address}"))

    async def close(self) -> None:
        """Stop looking and close the channels; encodings under way end with UNAVAILABLE."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for replica in self._replicas:
            await replica.close()

    async def wait_ready(self) -> None:
        """Wait for the first successful handshake."""
        while self._info is None:
            await self._changed.wait()

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
        failure: DiptychError | None = None
        for _ in range(_MAX_TRIES):
            replica = await self._choose(spec, tried, failure)
            if replica is None:
                break
            tried.append(replica)
            try:
                await replica.encode(request, spec=spec, buffer=buffer)
                return
            except DiptychError as error:
                if not isinstance(error, UnavailableError | ResourceExhaustedError) and not is_bad_stream(error):
                    raise
                failure = error
        raise self._refusal(failure)

    async def _choose(
        self, spec: FeatureSpec, tried: Sequence[VisionReplica], failure: DiptychError | None
    ) -> VisionReplica | None:
        """The best replica for the next try; None where waiting for one would be of no use.

        One that was not tried goes before one that was. A full replica is not asked a second time.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while True:
                    ready = [replica for replica in self._replicas if replica.state is ReplicaState.READY]
                    fresh = [replica for replica in ready if replica not in tried]
                    if fresh or (ready and not isinstance(failure, ResourceExhaustedError)):
                        return min(fresh or ready, key=lambda replica: _preference(replica, spec))
                    if ready or all(replica.state is ReplicaState.MISMATCH for replica in self._replicas):
                        return None
                    await self._changed.wait()
        return None

    def _refusal(self, failure: DiptychError | None) -> DiptychError:
        states = {replica.state for replica in self._replicas}
        if ReplicaState.MISMATCH in states <= {ReplicaState.MISMATCH, ReplicaState.UNREACHABLE}:
            return FailedPreconditionError("MODEL_MISMATCH", "no vision replica serves the encoder of this model")
        if failure is not None and not isinstance(failure, UnavailableError):
            return failure
        return UnavailableError("VISION_UNAVAILABLE", "no vision replica answers", retry_after=1.0)

    async def _watch(self, replica: VisionReplica) -> None:
        """Keep asking one replica, so that its state is true."""
        pause = _FIRST_PAUSE
        while True:
            replica.troubled.clear()
            await replica.probe(self._agree)
            # A fresh event for the next change, so that nobody who waits misses one.
            self._changed.set()
            self._changed = asyncio.Event()
            if replica.state is ReplicaState.READY:
                pause = _FIRST_PAUSE
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PROBE_EVERY):
                        await replica.troubled.wait()
                if replica.is_bad:
                    await asyncio.sleep(_LAST_PAUSE)
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)

    def _agree(self, api_version: str, info: VisionInfo) -> bool:
        """Whether a replica may be used; the first one that may decides what the others must say."""
        if (
            _major(api_version) != self._api_major
            or info.weights_digest != self._expected_digest
            or info.feature_width != self._expected_width
        ):
            return False
        if self._info is None:
            self._info = info
        same_pixels = info.preprocessing.fingerprint() == self._info.preprocessing.fingerprint()
        return same_pixels and info.dtype == self._info.dtype


def _preference(replica: VisionReplica, spec: FeatureSpec) -> tuple[int, bytes]:
    """Least pending patches; among equals, always the same replica for the same image, but not for all images."""
    return replica.pending_patches, hashlib.sha256(spec.image_hash + replica.address.encode()).digest()


def _major(api_version: str) -> str:
    return api_version.partition(".")[0]
