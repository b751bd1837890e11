"""The standard health service, grpc.health.v1.

Knows names and whether each is serving: "" says that the process lives, "readiness" that it may get work,
and a service's full name that this service answers. Does not know why. Unlike the library's own servicer it
ends its watches when the server drains; a watch never ends by itself and would use up the whole grace time.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

LIVENESS = ""
READINESS = "readiness"

Context: TypeAlias = "grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, HealthCheckResponse]"


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers probes. Alive from the start, ready only when told."""

    def __init__(self) -> None:
        self._serving = {LIVENESS: True, READINESS: False}
        self._draining = False
        self._changed = asyncio.Event()

    def set(self, name: str, serving: bool) -> None:
        """State whether a name is serving; ignored while draining."""
        if not self._draining:
            self._serving[name] = serving
            self._notify()

    def drain(self) -> None:
        """State that nothing is serving any more, for good."""
        self._serving = dict.fromkeys(self._serving, False)
        self._draining = True
        self._notify()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Tell whether a name is serving; NOT_FOUND for a name that was never set."""
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no service of this name.")
        return HealthCheckResponse(status=self._status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[HealthCheckResponse]:
        """Tell now and after each change whether a name is serving, until the server drains."""
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                yield HealthCheckResponse(status=status)
                last = status
            elif self._draining:
                break
            else:
                await changed.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is draining.")

    def _status(self, name: str) -> int:
        serving = self._serving.get(name)
        if serving is None:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING

    def _notify(self) -> None:
        # A fresh event for the next change, so that a watcher that is busy writing misses nothing.
        self._changed.set()
        self._changed = asyncio.Event()
