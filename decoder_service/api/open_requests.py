"""The requests that are open: their names, their places, and what they hold.

Knows how many there may be, and that two of one caller may not bear one name. Does not know what a request does.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager

from common.security.principal import current_principal
from decoder_service.api.aftermath import Aftermath
from decoder_service.api.request_parser import ParsedRequest, drop_pictures, request_digest
from decoder_service.engine.admission import Admission, AdmissionLimits, Place
from decoder_service.engine.caller import scoped_name
from decoder_service.engine.request_names import RequestNames
from decoder_service.prompt.prompt_spec import PromptSpec, TextPrompt, guess_num_tokens, num_picture_bytes
from decoder_service.scheduling.capacity import Capacity
from diptych.v1 import generation_pb2 as pb

_SMALL_REQUEST = 128 << 10
"""Bytes that are hashed in less time than a thread takes to begin."""
_TOKEN_BYTES = 4
"""About what a token takes in a request, in text or as an id."""


class OpenRequests:
    """Lets requests in, and gives back what they held; used on the event loop alone."""

    def __init__(self, limits: AdmissionLimits, capacity: Capacity) -> None:
        self._capacity = capacity
        self._names = RequestNames()
        self._aftermath = Aftermath()
        self.admission = Admission(limits)
        """What is open and what waits."""

    async def settled(self) -> None:
        """Wait until all that requests held is given back; none may be open."""
        await self._aftermath.settled()

    @asynccontextmanager
    async def holding(
        self, request: pb.GenerateRequest, parsed: ParsedRequest, *, deadline: float
    ) -> AsyncIterator[tuple[Place, AsyncExitStack]]:
        """A place, and what else the request holds, all of which is given back behind the answer.

        The engine lets go of a request between two steps, and the caller is not to wait for that. Raises
        ResourceExhaustedError where there is no place, AlreadyExistsError where the name is taken, and TimeoutError.
        """
        name = scoped_name(current_principal(), parsed.request_id)
        await self._left(name, deadline)
        async with AsyncExitStack() as stack:
            place = stack.enter_context(self._place(parsed))
            digest = await _digest(request, parsed.prompt)
            del request
            await self._left(name, deadline)  # Who had it may have ended meanwhile.
            stack.enter_context(self._names.held(name, digest))
            held = stack.pop_all()
        try:
            yield place, held
        finally:
            self._names.leave(name)
            self._aftermath.add(held.aclose())

    async def _left(self, name: str, deadline: float) -> None:
        if self._names.is_leaving(name):  # Seldom, and a time limit costs as much as reading the request.
            async with asyncio.timeout_at(deadline):
                await self._names.left(name)

    def _place(self, parsed: ParsedRequest) -> AbstractContextManager[Place]:
        """A place among the requests that are open, from before its prompt is laid out."""
        sampling = parsed.sampling.params
        # What can never fit is let through to where it is refused for that.
        may_fit = sampling.max_tokens <= self._capacity.max_tokens(1, n=sampling.n)
        guess = guess_num_tokens(parsed.prompt, most=self._capacity.max_model_len)
        return self.admission.place(
            num_tokens=guess + may_fit * sampling.max_completion_tokens,
            picture_bytes=num_picture_bytes(parsed.prompt),
        )


async def _digest(request: pb.GenerateRequest, prompt: PromptSpec) -> bytes:
    if not request.request_id:
        return b""
    pictures = () if isinstance(prompt, TextPrompt) else prompt.images
    drop_pictures(request)
    if _size(prompt) <= _SMALL_REQUEST:
        return request_digest(request, pictures)
    # On a thread: 60 MiB of pictures take longer to hash than an event loop should stand still.
    return await asyncio.to_thread(request_digest, request, pictures)


def _size(prompt: PromptSpec) -> int:
    """About how many bytes of a request it takes. Protobuf would write the whole message to know."""
    return num_picture_bytes(prompt) + _TOKEN_BYTES * guess_num_tokens(prompt, most=_SMALL_REQUEST)
