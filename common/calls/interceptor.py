"""Stands around every call of a server: lets it in, turns what a handler raises into a status, and has it observed.

Knows gRPC's four kinds of methods and the error tree. Does not know what any method does, or who may call it (see
`common.security.access`). Requests are received, decoded and unary responses encoded in here too: a caller who is not
let in cannot make us hold a message, and gRPC would send the text of whatever decoding raises to the caller. A status
UNKNOWN is therefore always a bug.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, closing
from functools import partial
from typing import Any, TypeAlias

import grpc
from prometheus_client import CollectorRegistry

from common.calls.call import current_call
from common.calls.observer import CallObserver, Context
from common.calls.open_calls import OpenCalls
from common.calls.status import status_code, status_message, to_trailers
from common.calls.stream_writer import StreamWriter
from common.errors import DiptychError, InternalError, InvalidArgumentError
from common.security.access import Gate
from common.telemetry.spans import Tracer

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Handle = Callable[[], Awaitable[Any]]
Guard = Callable[[Context, Handle], Awaitable[Any]]
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]

_log = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0
"""How long to wait until a status is sent. gRPC queues it, and keeps it, behind what the caller has yet to read."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Makes every call end with a status of ours.

    A DiptychError becomes its status with details. A cancellation goes on, so that gRPC cleans up. Anything
    else is our bug: the caller gets INTERNAL with a fixed text and an `error_id`, the log gets the traceback.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        gate: Gate,
        tracer: Tracer,
        stall_seconds: float,
    ) -> None:
        """Let in whom `gate` lets in. A call ends whose caller takes no message for `stall_seconds`."""
        self._observer = CallObserver(registry, tracer)
        self._stall_seconds = stall_seconds
        self._gate = gate
        self._guarded: dict[str, tuple[Handler, Handler]] = {}
        self.open_calls = OpenCalls()
        """The calls that are being handled."""
        self.check: Callable[[str], None] = lambda path: None
        """Told of each admitted call before its request is received; a DiptychError that it raises ends the call."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the method's handler inside a guard; `None` for a method that does not exist."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # not counted: a caller could fill the metrics with names of its own
        path = handler_call_details.method
        known, guarded = self._guarded.get(path, (None, None))
        if guarded is None or known is not handler:
            guarded = _guarded(handler, partial(self._guard, path), stall_seconds=self._stall_seconds)
            self._guarded[path] = handler, guarded
        return guarded

    async def _guard(self, path: str, context: Context, handle: Handle) -> Any:  # noqa: ANN401 - what it returns
        """Have `handle` answer a call, and see that it ends with exactly one status, which is counted."""
        with self._observer.observed(path, context) as outcome:
            try:
                with self.open_calls.one(), self._gate.admit(path, context):
                    self.check(path)
                    return await handle()
            except grpc.aio.AbortError:
                outcome.code = _own_code(context)
                raise
            except (Exception, asyncio.CancelledError) as error:
                if _caller_left(error):
                    is_overdue = current_call().is_overdue
                    outcome.code = grpc.StatusCode.DEADLINE_EXCEEDED if is_overdue else grpc.StatusCode.CANCELLED
                    raise asyncio.CancelledError from error
                answer = _to_answer(error, path)
                outcome.code, outcome.reason = status_code(answer), answer.reason
                await _abort(context, answer)
                raise AssertionError("aborting a call never returns") from error


def _guarded(handler: Handler, guard: Guard, *, stall_seconds: float) -> Handler:
    """The same method, receiving, decoding, running and encoding inside the guard.

    To gRPC it always takes a stream of requests, since gRPC would receive a single one before it asks us.
    """
    behaviour = getattr(handler, f"{_flow(handler.request_streaming)}_{_flow(handler.response_streaming)}")
    make = getattr(grpc, f"stream_{_flow(handler.response_streaming)}_rpc_method_handler")
    encode = handler.response_serializer or bytes

    async def argument(requests: AsyncIterator[bytes], context: Context) -> object:
        return _decode_each(handler, requests) if handler.request_streaming else await _decode_one(handler, context)

    async def unary(requests: AsyncIterator[bytes], context: Context) -> bytes:
        answer = await behaviour(await argument(requests, context), context)
        return encode(answer)

    async def stream(requests: AsyncIterator[bytes], context: Context) -> None:
        responses = behaviour(await argument(requests, context), context)
        if not isinstance(responses, AsyncGenerator):
            await responses  # a handler that calls context.write itself
            return
        # Closed here, not by the garbage collector, so that a handler cleans up as soon as its caller left.
        async with aclosing(responses):
            with closing(StreamWriter(context, stall_seconds=stall_seconds)) as writer:
                async for response in responses:
                    await writer.write(response)

    handle = stream if handler.response_streaming else unary

    async def inside(requests: AsyncIterator[bytes], context: Context) -> Any:  # noqa: ANN401 - whatever gRPC takes
        return await guard(context, partial(handle, requests, context))

    guarded: Handler = (
        make(inside, response_serializer=handler.response_serializer) if handler.response_streaming else make(inside)
    )
    return guarded


async def _abort(context: Context, answer: DiptychError) -> None:
    """End the call with a status, which waits behind what the caller has still to read, but not for it here."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await context.abort(status_code(answer), status_message(answer), to_trailers(answer))
    except TimeoutError:
        raise asyncio.CancelledError from answer


def _flow(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _decode(handler: Handler, request: bytes) -> object:
    if handler.request_deserializer is None:
        return request
    try:
        return handler.request_deserializer(request)
    except Exception as error:
        raise InvalidArgumentError("MALFORMED_REQUEST", "The request is not a valid message.") from error


async def _decode_one(handler: Handler, context: Context) -> object:
    # Not from the iterator: one that is left in the middle costs a task that closes it.
    request = await context.read()
    if request is grpc.aio.EOF:
        raise InvalidArgumentError("MALFORMED_REQUEST", "The call brought no message.")
    return _decode(handler, request)


async def _decode_each(handler: Handler, requests: AsyncIterator[bytes]) -> AsyncIterator[object]:
    async for request in requests:
        yield _decode(handler, request)


def _caller_left(error: BaseException) -> bool:
    """Whether there is nobody to answer: gRPC then cancels the handler's task, or fails its writes.

    A cancellation that comes out of the handler itself is a bug, and must be answered like one: gRPC would
    leave the caller waiting for ever.
    """
    task = asyncio.current_task()
    cancelled = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
    return cancelled or isinstance(error, grpc.aio.InternalError)


def _to_answer(error: BaseException, path: str) -> DiptychError:
    """The error that the caller sees; what only we may see goes to the log."""
    if isinstance(error, DiptychError) and not isinstance(error, InternalError):
        return error
    error_id = uuid.uuid4().hex
    _log.error("a call failed", exc_info=error, extra={"method": path, "error_id": error_id})
    if isinstance(error, InternalError):
        return InternalError(
            error.reason,
            error.message,
            field=error.field,
            metadata={"error_id": error_id, **error.metadata},
            retry_after=error.retry_after,
        )
    return InternalError("INTERNAL", "The server failed on this request.", metadata={"error_id": error_id})


def _own_code(context: Context) -> grpc.StatusCode:
    """The code of a handler that called context.abort itself."""
    codes = {code.value[0]: code for code in grpc.StatusCode}
    # aio gives the number, its stubs the enumeration.
    code: Any = context.code()
    return code if isinstance(code, grpc.StatusCode) else codes.get(code, grpc.StatusCode.UNKNOWN)
