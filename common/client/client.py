"""The Python client, for threads and for asyncio.

Knows calls, retries and deadlines. Does not know models: it needs grpcio, protobuf and the stubs, and works
where torch is not installed.

    with DiptychClient("localhost:50051") as client:
        print(client.complete([user_message("What is this?", ["cat.jpg"])], max_tokens=64).text)

A call that failed raises ClientError. gRPC repeats a call by itself where the server was UNAVAILABLE and
nothing had been answered. `timeout` is in seconds; without one the server's own limit holds. In an application
that uses OpenTelemetry a call is part of the current trace.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from typing import Final, Self, Unpack

import grpc

from common.client.messages import GenerateOptions, Prompt, generate_request, tokenize_request
from common.client.options import SERVICE, Options, channel_options
from common.client.places import MAX_CALLS, Places, end_after, seconds_until
from common.client.resuming import Progress
from common.client.trace import Metadata, traced
from common.client.types import ClientError, Completion, CompletionBuilder, to_client_error
from diptych.v1 import generation_pb2 as pb
from diptych.v1.generation_pb2_grpc import GenerationServiceStub

_GENERATE: Final = f"{SERVICE}/Generate"


class _Client(ABC):
    """What both clients have."""

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str = "",
        token: str | None = None,
        resumes: bool = True,
        max_calls: int = MAX_CALLS,
    ) -> None:
        """Connect to HOST:PORT when first used; without credentials in plain text, the token included.

        `server_name` must stand in the server's certificate, where it is not HOST. Unless `resumes` is False, a
        stream of one completion that breaks with UNAVAILABLE, or that a stopping server cancels, goes on in another
        call, three times at most and within its timeout; random sampling gets a seed for it. Several servers are
        given as `ipv4:HOST:PORT,HOST:PORT`, or as `dns:///NAME:PORT`. Of many calls `max_calls` are under way, and the
        others wait within their timeout, first come first served; a stream counts until it is read to its end or
        closed. It should be well below the `--max-concurrent-streams` of the servers together, one's default being 100.
        """
        self._metadata: Metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._resumes = resumes
        self._places = Places(max_calls)
        self._connect(address, channel_options(server_name), credentials)

    @abstractmethod
    def _connect(self, address: str, options: Options, credentials: grpc.ChannelCredentials | None) -> None:
        """Have a channel and a stub."""

    def _progress(self, prompt: Prompt, options: GenerateOptions, end: float | None) -> Progress:
        return Progress(generate_request(prompt, options), end=end, resumes=self._resumes)


class DiptychClient(_Client):
    """Calls a decoder service; may be shared between threads."""

    def _connect(self, address: str, options: Options, credentials: grpc.ChannelCredentials | None) -> None:
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self._stub = GenerationServiceStub(self._channel)

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Generator[pb.GenerateResponse, None, None]:
        """Stream `prompt`, then `delta`s, then a `finish` for each completion. Closing the iterator cancels it."""
        end = end_after(timeout)
        progress = self._progress(prompt, options, end)
        with traced(_GENERATE, self._metadata) as metadata, self._places.one(end):
            while True:
                try:
                    call = self._stub.Generate(progress.request(), timeout=seconds_until(end), metadata=metadata)
                    with _client_errors(), _cancelled(call):
                        yield from filter(progress.take, call)
                    return
                except ClientError as error:
                    pause = progress.pause_after(error)
                if pause is None:
                    return
                time.sleep(pause)

    def complete(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """Return one whole completion; the first one where `n` asks for more."""
        return self.complete_all(prompt, timeout=timeout, **options)[0]

    def complete_all(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> list[Completion]:
        """Return as many whole completions as `n` says. The prompt, which each one's usage tells, was read once."""
        builder = CompletionBuilder()
        responses = self.generate(prompt, timeout=timeout, **options)
        with closing(responses):
            for response in responses:
                builder.add(response)
        return builder.build_all()

    def tokenize(self, prompt: Prompt, *, timeout: float | None = None) -> pb.TokenizeResponse:
        """Lay out a prompt without running the model."""
        end = end_after(timeout)
        with self._places.one(end), _client_errors():
            return self._stub.Tokenize(tokenize_request(prompt), timeout=seconds_until(end), metadata=self._metadata)

    def get_model_info(self, *, timeout: float | None = None) -> pb.GetModelInfoResponse:
        """Tell which model is served and within which limits."""
        end, request = end_after(timeout), pb.GetModelInfoRequest()
        with self._places.one(end), _client_errors():
            return self._stub.GetModelInfo(request, timeout=seconds_until(end), metadata=self._metadata)

    def close(self) -> None:
        """Close the connection; calls that run or wait are cancelled."""
        self._places.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncDiptychClient(_Client):
    """Calls a decoder service from one event loop."""

    def _connect(self, address: str, options: Options, credentials: grpc.ChannelCredentials | None) -> None:
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )
        self._stub = GenerationServiceStub(self._channel)

    async def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream `prompt`, then `delta`s, then a `finish` for each completion.

        Closing the iterator cancels it; `break` alone closes it late, so use `contextlib.aclosing`.
        """
        end = end_after(timeout)
        progress = self._progress(prompt, options, end)
        async with self._places.one_async(end):
            with traced(_GENERATE, self._metadata) as metadata:
                while True:
                    try:
                        call = self._stub.Generate(progress.request(), timeout=seconds_until(end), metadata=metadata)
                        with _client_errors(), _cancelled(call):
                            async for response in call:
                                if progress.take(response):
                                    yield response
                        return
                    except ClientError as error:
                        pause = progress.pause_after(error)
                    if pause is None:
                        return
                    await asyncio.sleep(pause)

    async def complete(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """Return one whole completion; the first one where `n` asks for more."""
        return (await self.complete_all(prompt, timeout=timeout, **options))[0]

    async def complete_all(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> list[Completion]:
        """Return as many whole completions as `n` says. The prompt, which each one's usage tells, was read once."""
        builder = CompletionBuilder()
        responses = self.generate(prompt, timeout=timeout, **options)
        async with aclosing(responses):
            async for response in responses:
                builder.add(response)
        return builder.build_all()

    async def tokenize(self, prompt: Prompt, *, timeout: float | None = None) -> pb.TokenizeResponse:
        """Lay out a prompt without running the model."""
        end, request = end_after(timeout), tokenize_request(prompt)
        async with self._places.one_async(end):
            with _client_errors():
                return await self._stub.Tokenize(request, timeout=seconds_until(end), metadata=self._metadata)

    async def get_model_info(self, *, timeout: float | None = None) -> pb.GetModelInfoResponse:
        """Tell which model is served and within which limits."""
        end, request = end_after(timeout), pb.GetModelInfoRequest()
        async with self._places.one_async(end):
            with _client_errors():
                return await self._stub.GetModelInfo(request, timeout=seconds_until(end), metadata=self._metadata)

    async def close(self) -> None:
        """Close the connection; calls that run or wait are cancelled."""
        self._places.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


@contextmanager
def _client_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise to_client_error(error) from None


@contextmanager
def _cancelled(call: grpc.RpcContext | grpc.aio.Call) -> Iterator[None]:
    # A stream that is left early runs on at the server until the connection closes, unless it is cancelled.
    try:
        yield
    finally:
        call.cancel()
