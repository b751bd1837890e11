"""The `GenerationService`: messages in, requests to the engine, messages out.

Knows protobuf and the stages of a request. Does not know torch, policy or statuses: whatever goes wrong is
raised as a DiptychError, which the server turns into a status.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Final

import grpc

from common.errors import DeadlineExceededError
from common.features.wire_types import grid_to_proto
from common.security.principal import current_principal, token_charge
from decoder_service.api.answer import Answer
from decoder_service.api.model_info import ModelInfo
from decoder_service.api.open_requests import OpenRequests
from decoder_service.api.replies import Replies
from decoder_service.api.request_builder import RequestBuilder
from decoder_service.api.request_parser import ParsedRequest, parse_generate_request, parse_prompt
from decoder_service.api.resume_parser import check_resumption_length
from decoder_service.cache.feature_store import FeatureStore, PromptImage
from decoder_service.engine.admission import Admission, AdmissionLimits, Place
from decoder_service.engine.generation import Generation, Pace
from decoder_service.engine.host import EngineHost
from decoder_service.engine.request import Request
from decoder_service.prompt.layout import is_quick, lay_out
from decoder_service.prompt.prompt import Prompt, PromptBuilder
from decoder_service.prompt.prompt_spec import PromptSpec, guess_num_tokens, has_images, num_picture_bytes
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.scheduling.capacity import Capacity
from decoder_service.structured.compiler import StructureCompiler, not_installed
from decoder_service.structured.structure import Matcher, Structure
from decoder_service.telemetry.genai import request_attributes
from decoder_service.telemetry.request_metrics import RequestMetrics
from decoder_service.telemetry.request_watch import RequestWatch, watching
from decoder_service.text.resumption import Resumption, take_up
from decoder_service.text.text_stream import TextPiece, TextStream
from decoder_service.vision.image_encoder import ImageEncoder
from diptych.v1 import generation_pb2 as pb
from diptych.v1 import generation_pb2_grpc

_PROMPT_SECONDS: Final = 0.1
"""Longest time that the message about the prompt waits for the first token, to be told together with it.

Told alone it would take processor time from the step that computes the first token: half a millisecond and more, as
nothing of what tells it is in the processor's caches then.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicerLimits:
    """Bounds that the servicer holds itself."""

    capacity: Capacity
    """How large a request may be."""
    admission: AdmissionLimits
    """How much may be open."""
    pace: Pace
    """How tokens reach their callers."""
    max_seconds: float
    """Longest time for a request whose caller sets no deadline."""
    max_priority: int
    """Highest class that a caller may ask for."""


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Serves Generate, Tokenize and GetModelInfo. Laying out prompts takes CPU time and runs on threads."""

    def __init__(
        self,
        *,
        host: EngineHost,
        store: FeatureStore,
        encoder: ImageEncoder | None,
        prompts: PromptBuilder,
        tokenizer: Tokenizer,
        info: ModelInfo,
        limits: ServicerLimits,
        metrics: RequestMetrics,
        structures: StructureCompiler | None,
    ) -> None:
        """Take the parts; `encoder` is None for a model that takes no images.

        `structures` is None where nothing is installed that could keep a completion inside a language.
        """
        self._structures = structures
        self._host = host
        self._store = store
        self._encoder = encoder
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._info = info
        self._limits = limits
        self._metrics = metrics
        self._requests = RequestBuilder(tokenizer, info, limits.capacity)
        self._open = OpenRequests(limits.admission, limits.capacity)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="prompt")

    @property
    def admission(self) -> Admission:
        """What is open and what waits."""
        return self._open.admission

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Stream the completions of one prompt."""
        deadline = self._deadline(context)
        with watching(self._metrics) as watch:
            check_resumption_length(request, max_model_len=self._info.max_model_len)
            parsed = parse_generate_request(
                request,
                vocabulary_size=self._info.vocabulary_size,
                max_priority=self._limits.max_priority,
                adapters=self._info.adapters,
            )
            parsed = replace(parsed, cache_salt=current_principal().cache_salt(parsed.cache_salt))
            attributes = request_attributes(parsed, model_name=self._info.model_name)
            watch.named(parsed.request_id, attributes, adapter=parsed.adapter.name)
            try:
                async with self._open.holding(request, parsed, deadline=deadline) as (place, held):
                    del request  # Its pictures are copied.
                    async with aclosing(self._generate(parsed, watch, place, held, deadline=deadline)) as responses:
                        async for response in responses:
                            yield response
            except TimeoutError:
                raise DeadlineExceededError("DEADLINE_EXCEEDED", "the request ran out of time") from None

    async def Tokenize(
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext[pb.TokenizeRequest, pb.TokenizeResponse]
    ) -> pb.TokenizeResponse:
        """Lay out a prompt without running the model."""
        spec = parse_prompt(request)
        guess = guess_num_tokens(spec, most=self._info.max_model_len)
        with self.admission.place(num_tokens=guess, picture_bytes=num_picture_bytes(spec)):
            prompt, _ = await self._lay_out(spec, salt=b"")
        placeholders = (
            pb.PlaceholderRange(offset=span.offset, length=span.length, grid=grid_to_proto(span.grid))
            for span in prompt.placeholders
        )
        return pb.TokenizeResponse(token_ids=prompt.token_ids, placeholders=placeholders)

    async def GetModelInfo(
        self,
        request: pb.GetModelInfoRequest,
        context: grpc.aio.ServicerContext[pb.GetModelInfoRequest, pb.GetModelInfoResponse],
    ) -> pb.GetModelInfoResponse:
        """Tell what is served."""
        return self._info.to_wire(self._encoder.info if self._encoder else None)

    async def close(self) -> None:
        """Wait until the engine has let go of every request, and the threads have ended; no call may be in flight."""
        await self._open.settled()
        await asyncio.to_thread(self._threads.shutdown)

    async def _generate(
        self, parsed: ParsedRequest, watch: RequestWatch, place: Place, held: AsyncExitStack, *, deadline: float
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        async with asyncio.timeout_at(deadline):
            prompt, images = await self._lay_out(parsed.prompt, salt=parsed.cache_salt)
            matcher = None if parsed.structure is None else await self._matcher(parsed.structure)
        charge = token_charge()
        charge(len(prompt.token_ids))
        engine_request = self._requests.build(parsed, prompt, images, matcher)
        self._store.check_fits(images)
        place.laid_out(len(prompt.token_ids) + engine_request.sampling.max_completion_tokens)
        replies = Replies(parsed.request_id, prompt, resumption=parsed.resumption)
        texts = [self._requests.text_stream(parsed) for _ in range(engine_request.sampling.n)]
        generation = Generation(
            self._host,
            self._store,
            engine_request,
            images=images,
            salt=parsed.cache_salt,
            gaps=self._metrics.inter_token_latency,
            on_begun=place.begun,
            pace=self._limits.pace,
        )
        answer = Answer(replies, texts, prompt=prompt, generation=generation, watch=watch)
        async with asyncio.timeout_at(deadline):
            lacking = await self._take_up(engine_request, texts[0], parsed.resumption)
            if lacking is None or lacking.finish_reason is None:
                held.push_async_exit(generation)
                await generation.submit()
        answer.begins()
        if parsed.resumption is None or not parsed.resumption.num_messages:
            if lacking is None:
                now = asyncio.get_running_loop().time()
                await generation.first_news(until=min(deadline, now + _PROMPT_SECONDS))
            yield replies.prompt(cached_tokens=generation.num_cached_tokens)
        if lacking is not None and (lacking.text or lacking.finish_reason is not None):
            for message in answer.goes_on(lacking):
                yield message
            if lacking.finish_reason is not None:
                return
        async with aclosing(generation.tokens(deadline=deadline)) as steps:
            async for tokens in steps:
                charge(len(tokens))
                for message in answer.messages(tokens):
                    yield message
                if answer.is_complete:
                    return

    def _deadline(self, context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]) -> float:
        remaining: float | None = context.time_remaining()  # None without a deadline; aio's stubs say float.
        return asyncio.get_running_loop().time() + (self._limits.max_seconds if remaining is None else remaining)

    async def _lay_out(self, spec: PromptSpec, *, salt: bytes) -> tuple[Prompt, tuple[PromptImage, ...]]:
        """Token ids, and the images with the features that they will get."""
        info = self._encoder.require_info() if self._encoder and has_images(spec) else None
        if is_quick(spec):
            return lay_out(self._prompts, spec, info, salt)
        return await asyncio.get_running_loop().run_in_executor(self._threads, lay_out, self._prompts, spec, info, salt)

    async def _take_up(self, request: Request, text: TextStream, resumption: Resumption | None) -> TextPiece | None:
        """What the caller lacks of the tokens that it has; may be as many as the model's length."""
        if resumption is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._threads, take_up, request, text, resumption)

    async def _matcher(self, structure: Structure) -> Matcher:
        if self._structures is None:
            raise not_installed(structure)
        return await self._structures.matcher(structure)
