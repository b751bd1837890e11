"""One vision replica: its channel, what is known of it, and one attempt to get features from it.

Knows one address. Does not know the other replicas or when to try again (see `fleet`).
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.calls.call import current_call, trace_metadata
from common.calls.channel_options import CLIENT_OPTIONS
from common.calls.remote_errors import NOT_LET_IN, from_rpc_error
from common.client.tls import ChannelTls, aio_channel
from common.errors import DiptychError, InternalError, UnavailableError
from common.features.chunk_copy import CopyChunk
from common.features.feature_memory import PageMaker
from common.features.feature_spec import FeatureSpec
from common.features.features import FeatureReceiver
from common.features.vision_info import VisionInfo
from common.telemetry.spans import SpanKind
from decoder_service.vision.agreement import read_info
from decoder_service.vision.arena_guest import ArenaGuest, Sharing
from decoder_service.vision.encode_message import serialized
from decoder_service.vision.loop_turns import LoopTurns
from decoder_service.vision.replica_state import ReplicaState
from diptych.v1 import vision_pb2 as pb
from diptych.v1 import vision_pb2_grpc

_log = logging.getLogger(__name__)
_MAX_BAD_STREAMS = 3
_MAX_UNANSWERED = 2
_PROBE_SECONDS = 1.0
"""How long a replica that is not ready may take to answer."""
_READY_PROBE_SECONDS = 5.0
"""How long a ready one may: a busy machine is no dead one, and pings find those."""
_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["VisionService"].full_name
_ENCODE = f"{_SERVICE_NAME}/Encode"
_HEALTH_PAUSE = 0.5
"""Seconds before a watch of its health that broke is begun again."""
_MAX_CALLS = 64
"""Images on their way from one replica. Servers refuse streams over 100 of one connection as if they were broken,
and questions about health and load need some too."""

Objection = Callable[[str, VisionInfo], str]
"""Why a replica of this API version and this model may not be used; empty where it may."""


class VisionReplica:
    """A replica at a fixed address; made on the event loop that uses it."""

    def __init__(
        self, address: str, *, tls: ChannelTls | None, turns: LoopTurns, copy: CopyChunk, shared_memory: bool
    ) -> None:
        """Talk to `address`; chunks of features are copied and checked by `copy`, in `turns`.

        With `shared_memory` features come through memory that the replica shares, where it can.
        """
        self.address = address
        self._turns = turns
        self._pages = PageMaker()
        self._copy = copy
        self.state, self._reason = ReplicaState.UNREACHABLE, ""
        self.info: VisionInfo | None = None
        """What the replica said when it was last asked."""
        self.troubled = asyncio.Event()
        """Set when an encode left the replica not ready, so that it is asked again at once."""
        self._channel = aio_channel(address, CLIENT_OPTIONS, tls)
        self._stub = vision_pb2_grpc.VisionServiceStub(self._channel)
        # Answers in bytes: the receiver reads them without the copies that generated code makes.
        self._encode: Any = self._channel.unary_stream(f"/{_SERVICE_NAME}/Encode", request_serializer=serialized)
        self._guest = ArenaGuest(address, wants_memory=shared_memory)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)  # its stubs do not know its methods
        self._is_serving = True
        self._slots = asyncio.Semaphore(_MAX_CALLS)
        self._num_calls = 0
        self._left = asyncio.Event()
        self._own_patches = 0
        self._others_patches = 0
        self._bad_streams = 0
        self._num_unanswered = 0
        self._calls: set[Any] = set()

    @property
    def pending_patches(self) -> int:
        """Patches that wait there: ours now, and those of other decoder services when last asked."""
        return self._own_patches + self._others_patches

    @property
    def sharing(self) -> Sharing | None:
        """What became of the memory that it offers; None where it offers none, or none is wanted."""
        return self._guest.sharing

    @property
    def is_silent(self) -> bool:
        """Whether it answers nothing any more, though nothing says that it is gone or about to go."""
        return self._num_unanswered >= _MAX_UNANSWERED and self._is_serving

    async def close(self) -> None:
        """Close the channel; calls under way end, and those that wait for their turn do not begin."""
        self.state = ReplicaState.UNREACHABLE
        self._guest.leave()
        await self._channel.close()

    def drop_calls(self) -> None:
        """End the calls under way, which it does not answer, with UNAVAILABLE."""
        for call in self._calls:
            call.cancel()

    async def wait_unused(self) -> None:
        """Wait until no call is under way."""
        while self._num_calls:
            self._left.clear()
            await self._left.wait()

    async def watch_health(self) -> None:
        """Follow what the replica says of its own health, for ever; one that says nothing of it is healthy."""
        while True:
            request = health_pb2.HealthCheckRequest(service=_SERVICE_NAME)
            try:
                async for answer in self._health.Watch(request, wait_for_ready=True):
                    self._hear(answer.status != health_pb2.HealthCheckResponse.NOT_SERVING)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return
            # A watch that ends says that the connection is lost, or about to be.
            if self.state is ReplicaState.READY:
                self._enter(ReplicaState.UNREACHABLE, "WATCH_ENDED")
            await asyncio.sleep(_HEALTH_PAUSE)

    def _hear(self, is_serving: bool) -> None:
        self._is_serving = is_serving
        if self.state is ReplicaState.READY and not is_serving:
            self._enter(ReplicaState.DRAINING, "NOT_SERVING")
        elif self.state is ReplicaState.DRAINING and is_serving:
            self._enter(ReplicaState.UNREACHABLE, "SERVING")

    async def probe(self, objection_to: Objection) -> None:
        """Ask for model and load, and set the state by the answer."""
        before = self.state
        seconds = _READY_PROBE_SECONDS if before is ReplicaState.READY else _PROBE_SECONDS
        try:
            model = await self._stub.GetModelInfo(
                pb.VisionServiceGetModelInfoRequest(), timeout=seconds, wait_for_ready=True
            )
            load = await self._stub.GetLoad(pb.GetLoadRequest(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            self._num_unanswered += error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            self._enter(ReplicaState.UNREACHABLE, from_rpc_error(error).reason)
            return
        self._num_unanswered = 0
        self._others_patches = max(0, load.pending_patches - self._own_patches)
        self.info = read_info(model)
        unknown = "it speaks of a number type or a preprocessing that this service does not know"
        objection = unknown if self.info is None else objection_to(model.api_version, self.info)
        if objection:
            self._enter(ReplicaState.MISMATCH, objection)
            return
        await self._guest.meet(model.shared_memory_socket)
        if self.state is ReplicaState.BAD:
            if before is not ReplicaState.BAD:
                return  # Its streams turned out bad while it answered.
            self._bad_streams = 0
        self._enter(*((ReplicaState.READY, "") if self._is_serving else (ReplicaState.DRAINING, "NOT_SERVING")))

    async def encode(self, request: pb.EncodeRequest, *, spec: FeatureSpec, buffer: memoryview) -> None:
        """Fill `buffer` with the features of one image, in one attempt. Raises a DiptychError.

        After an error the buffer's content means nothing. Leaving early cancels the call.
        """
        self._own_patches += spec.grid.num_patches
        self._num_calls += 1
        try:
            async with self._slots:
                if self.state is not ReplicaState.READY:
                    raise UnavailableError("REPLICA_LEFT", "the replica takes no more work")
                await self._receive(request, spec, buffer)
            self._bad_streams = 0
        except UnavailableError as error:
            if self.state is ReplicaState.READY:
                self._enter(ReplicaState.UNREACHABLE, error.reason)
            raise
        except InternalError as error:
            if is_bad_stream(error):
                self._count_bad_stream(error)
            raise
        finally:
            self._own_patches -= spec.grid.num_patches
            self._num_calls -= 1
            self._left.set()

    async def _receive(self, request: pb.EncodeRequest, spec: FeatureSpec, buffer: memoryview) -> None:
        visit = self._guest.visit
        receiver = FeatureReceiver(spec, buffer, shared=visit.memory if visit else None, copy=self._copy)
        span = current_call().span.start(_ENCODE, kind=SpanKind.CLIENT)
        call = self._encode((request, visit.token if visit else b""), metadata=trace_metadata(span))
        self._calls.add(call)
        try:
            await self._pages.make(buffer)  # While the replica works.
            # Not by an iterator, which holds a message until the next one is there: so that one gets the same memory.
            # In turns, as gRPC puts together, on the event loop, what it has of a message only when it goes on.
            while (message := await self._turns.go_on(call.read())) is not grpc.aio.EOF:
                receiver.receive(message)
                del message
                if visit is not None and receiver.is_complete and receiver.lease is not None:
                    visit.release(receiver.lease)
            receiver.finish()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            reason = "REPLICA_SILENT" if self.is_silent else "CLIENT_CLOSED"
            raise UnavailableError(reason, "the connection was given up") from None
        finally:
            receiver.close()
            # The server would go on encoding for a stream that is merely no longer read.
            call.cancel()
            self._calls.discard(call)
            span.end(error=None if receiver.is_complete else "INCOMPLETE")

    def _count_bad_stream(self, error: DiptychError) -> None:
        self._bad_streams += 1
        _log.warning(
            "a stream of features was bad",
            extra={"address": self.address, "reason": error.reason, "in_a_row": self._bad_streams},
        )
        if self._bad_streams >= _MAX_BAD_STREAMS:
            self._enter(ReplicaState.BAD, error.reason)
        elif error.reason == "EMBED_INVALID":
            # Perhaps another model has come up at this address, so it must introduce itself again.
            self._enter(ReplicaState.UNREACHABLE, error.reason)

    def _enter(self, state: ReplicaState, reason: str) -> None:
        # One that is not reached anyway may be there and not let us in, of which nobody else would tell.
        if state is not self.state or (reason == NOT_LET_IN != self._reason):
            extra = {"address": self.address, "state": state.value} | ({"reason": reason} if reason else {})
            _log.log(logging.INFO if state is ReplicaState.READY else logging.WARNING, "vision replica", extra=extra)
            self.state, self._reason = state, reason
        if state is not ReplicaState.READY:
            self.troubled.set()


def is_bad_stream(error: DiptychError) -> bool:
    """Whether an error says that the features, not the request, were wrong."""
    return error.reason in ("EMBED_CORRUPT", "EMBED_INVALID")
