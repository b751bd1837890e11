"""A GenerationService that answers by what the prompt says, for tests of everything around the real one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from common import errors
from common.calls.observer import Context
from common.server.config import ServerConfig
from common.server.server import GrpcServer
from diptych.v1 import generation_pb2 as pb
from diptych.v1 import generation_pb2_grpc, types_pb2

NAME = "diptych.v1.GenerationService"
HIDDEN = "secret path /models/x"


def raise_for(word: str) -> None:
    """Raise what the word names; nothing for other words."""
    if word == "bug":
        raise ValueError(HIDDEN)
    if word == "stray":
        raise asyncio.CancelledError
    error_class: type[errors.DiptychError] | None = getattr(errors, word, None)
    if error_class is not None:
        raise error_class(
            "SOME_REASON", "Some text.", field="sampling.top_p", metadata={"limit": 1, "got": 2}, retry_after=0.25
        )


class FakeGeneration(generation_pb2_grpc.GenerationServiceServicer):
    """Answers every prompt with its own words, one delta each; some words do other things."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.num_attempts = 0
        self.num_open = 0
        """Streams whose handler has not ended."""

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.num_attempts += 1
        self.num_open += 1
        try:
            words = _text(request).split(" ")
            if words[0] == "flaky" and self.num_attempts < 3:
                raise errors.UnavailableError("DRAINING", "Not now.", retry_after=0.02)
            if words[0] != "late":
                raise_for(words[0])
            yield pb.GenerateResponse(
                seq=0,
                prompt=pb.PromptInfo(request_id="r1", prompt_tokens=5, grids=[types_pb2.PatchGrid(height=2, width=3)]),
            )
            seq = 1
            for word in words[1:]:
                if word == "slow":
                    await asyncio.sleep(0.3)
                if word == "forever":
                    await asyncio.sleep(60)
                if word == "gap":
                    seq += 1
                if word == "end":
                    return
                raise_for(word)
                for index in range(request.sampling.n or 1):
                    delta = pb.Delta(text=f"{word} ", token_ids=[len(word)])
                    yield pb.GenerateResponse(seq=seq, index=index, delta=delta)
                    seq += 1
            for index in range(1, request.sampling.n):
                yield pb.GenerateResponse(seq=seq, index=index, finish=pb.Finish(reason=pb.FINISH_REASON_STOP))
                seq += 1
            yield pb.GenerateResponse(
                seq=seq,
                finish=pb.Finish(
                    reason=pb.FINISH_REASON_LENGTH,
                    usage=pb.Usage(
                        prompt_tokens=5,
                        image_tokens=3,
                        cached_tokens=1,
                        images_not_encoded=2,
                        completion_tokens=seq - 1,
                    ),
                    timings=pb.Timings(queue_seconds=0.5, decode_seconds=1.5),
                ),
            )
        finally:
            self.num_open -= 1

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        raise_for(request.text.text)
        if request.text.text == "forever":
            await asyncio.sleep(60)
        return pb.TokenizeResponse(token_ids=[1, 2, 3])

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse(
            api_version="1.0", model_name="fake", end_token_ids=[2, 3], vision_weights_digest=b"\x01\xff"
        )


@asynccontextmanager
async def running(
    servicer: FakeGeneration,
    *,
    registry: CollectorRegistry | None = None,
    **settings: Any,  # noqa: ANN401
) -> AsyncIterator[tuple[GrpcServer, str]]:
    """A server of it on a free port of the loopback, and its address."""
    config = ServerConfig(**{"port": 0, "grace_seconds": 0.0, **settings})
    server = GrpcServer(config, registry=registry or CollectorRegistry(), service_names=[NAME])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    server.set_serving([NAME])
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop()


async def serve(**settings: Any) -> int:  # noqa: ANN401
    """Serve until a signal comes, as the services do."""
    async with running(FakeGeneration(), **settings) as (server, _):
        await server.wait_for_termination()
    return 0


def _text(request: pb.GenerateRequest) -> str:
    if request.HasField("text"):
        return request.text.text
    return "".join(part.text for message in request.chat.messages for part in message.parts)
