"""The Python client, for threads and for asyncio.

Knows calls, retries and deadlines. Does not know models: it needs grpcio, protobuf and the stubs, and works
where torch is not installed.

    with DiptychClient("localhost:50051") as client:
        print(client.complete([user_message("What is this?", ["cat.jpg"])], max_tokens=64).text)

A call that failed raises ClientError. gRPC repeats a call by itself where the server was UNAVAILABLE and
nothing had been answered. `timeout` is in seconds; without one the server's own limit holds. In an application
that uses OpenTelemetry a call is part of the current trace.
"""

import json
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from typing import Final, Self, Unpack

import grpc

from common.channel_options import CLIENT_OPTIONS
from common.client_messages import GenerateOptions, Prompt, generate_request, tokenize_request
from common.client_trace import Metadata, traced
from common.client_types import Completion, CompletionBuilder, to_client_error
from diptych.v1 import generation_pb2 as pb
from diptych.v1.generation_pb2_grpc import GenerationServiceStub

SERVICE: Final = "diptych.v1.GenerationService"
_GENERATE: Final = f"{SERVICE}/Generate"
_SERVICE_CONFIG: Final = {
    # One of several addresses that goes away takes only those calls along that it has answered.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # Retries stop while more than about one call in ten fails, so that they cannot multiply an overload.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
_OPTIONS: Final[dict[str, int | str]] = {
    **dict(CLIENT_OPTIONS),
    "grpc.enable_retries": 1,
    "grpc.service_config": json.dumps(_SERVICE_CONFIG),
    # A proxy for web pages, which the environment may name, is no way to a server of this kind.
    "grpc.enable_http_proxy": 0,
    # The server says what is too large.
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
}


class DiptychClient:
    """Calls a decoder service; may be shared between threads."""

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str = "",
        token: str | None = None,
    ) -> None:
        """Connect to HOST:PORT when first used; without credentials in plain text, the token included.

        `server_name` must stand in the server's certificate, where it is not HOST.
        """
        self._metadata = _metadata(token)
        options = _options(server_name)
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
        request = generate_request(prompt, options)
        with traced(_GENERATE, self._metadata) as metadata, _client_errors():
            call = self._stub.Generate(request, timeout=timeout, metadata=metadata)
            with _cancelled(call):
                yield from call

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
        with _client_errors():
            return self._stub.Tokenize(tokenize_request(prompt), timeout=timeout, metadata=self._metadata)

    def get_model_info(self, *, timeout: float | None = None) -> pb.GetModelInfoResponse:
        """Tell which model is served and within which limits."""
        with _client_errors():
            return self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=timeout, metadata=self._metadata)

    def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncDiptychClient:
    """Calls a decoder service from one event loop."""

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str = "",
        token: str | None = None,
    ) -> None:
        """Connect to HOST:PORT when first used; without credentials in plain text, the token included.

        `server_name` must stand in the server's certificate, where it is not HOST.
        """
        self._metadata = _metadata(token)
        options = _options(server_name)
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
        request = generate_request(prompt, options)
        with traced(_GENERATE, self._metadata) as metadata, _client_errors():
            call = self._stub.Generate(request, timeout=timeout, metadata=metadata)
            with _cancelled(call):
                async for response in call:
                    yield response

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
        with _client_errors():
            return await self._stub.Tokenize(tokenize_request(prompt), timeout=timeout, metadata=self._metadata)

    async def get_model_info(self, *, timeout: float | None = None) -> pb.GetModelInfoResponse:
        """Tell which model is served and within which limits."""
        request = pb.GetModelInfoRequest()
        with _client_errors():
            return await self._stub.GetModelInfo(request, timeout=timeout, metadata=self._metadata)

    async def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


def _options(server_name: str) -> tuple[tuple[str, int | str], ...]:
    return (*_OPTIONS.items(), *((("grpc.ssl_target_name_override", server_name),) if server_name else ()))


def _metadata(token: str | None) -> Metadata:
    return () if token is None else (("authorization", f"Bearer {token}"),)


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
