"""The standard health service, grpc.health.v1.

Knows names and whether each is serving. Does not know why.

    startup      the model is loaded; from the first answer on, for good
    liveness     the process is worth keeping; a draining one is
    readiness    it may get work
    SERVICE      this service, by its full name, may get work
    ""           the server as a whole, as the standard has it: alive and not draining

Unlike the library's own servicer it ends its watches when the server drains; a watch never ends by itself and would
use up the whole grace time.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

STARTUP: Final = "startup"
LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
OVERALL: Final = ""

Context: TypeAlias = "grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, HealthCheckResponse]"


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers probes. Alive from the start, ready only when told."""

    def __init__(self, service_names: Iterable[str] = ()) -> None:
        """Know these services from the start, though none is ready yet."""
        names = dict.fromkeys((READINESS, *service_names), False)
        self._serving = {STARTUP: True, LIVENESS: True, OVERALL: True, **names}
        self._draining = False
        self._changed = asyncio.Event()

    def set_ready(self, service_names: Iterable[str], ready: bool) -> None:
        """State whether services, and with them the process, may get work; ignored while draining."""
        if not self._draining:
            self._set((READINESS, *service_names), ready)

    def set_alive(self, alive: bool) -> None:
        """State whether the process is worth keeping."""
        self._set((LIVENESS,) if self._draining else (LIVENESS, OVERALL), alive)

    def drain(self) -> None:
        """State that nothing may get work any more, for good."""
        self._draining = True
        self._set(self._serving.keys() - {STARTUP, LIVENESS}, False)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Tell whether a name is serving; NOT_FOUND for a name that was never set."""
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no service of this name.")
        return HealthCheckResponse(status=self._status(request.service))

    async def List(self, request: object, context: object) -> Any:  # noqa: ANN401 - newer than its types
        """Tell of every name whether it is serving."""
        statuses = {name: HealthCheckResponse(status=self._status(name)) for name in self._serving}
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]

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

    def _set(self, names: Iterable[str], serving: bool) -> None:
        self._serving.update(dict.fromkeys(names, serving))
        # A fresh event for the next change, so that a watcher that is busy writing misses nothing.
        self._changed.set()
        self._changed = asyncio.Event()
