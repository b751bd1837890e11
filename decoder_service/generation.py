"""One request on the event loop, from its submission to its last token.

Knows the engine's host, the request's images and its times. Does not know text or messages.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from common.errors import DiptychError, UnavailableError
from decoder_service.engine_host import EngineHost
from decoder_service.feature_store import FeatureStore, PromptImage
from decoder_service.image_encoder import ImageFeatures
from decoder_service.image_fetch import ImageFetch
from decoder_service.request import Request
from decoder_service.step import TokenOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that a request spent, without overlap: they add up to its time in the engine."""

    queue: float
    """Waiting for the first step that worked on it, but not for images."""
    encode_wait: float
    """Waiting for the features of the first image that had to be fetched, until then or until it was worked on."""
    prefill: float
    """From its first step to its first token."""
    decode: float
    """From its first token to its last."""


class Gaps(Protocol):
    """Takes the times between tokens."""

    def observe(self, value: float) -> None:
        """Count one, in seconds."""


class Generation:
    """A request that is being run; an async context manager, whose end frees all that the request holds."""

    def __init__(
        self,
        host: EngineHost,
        store: FeatureStore,
        request: Request,
        *,
        images: Sequence[PromptImage],
        salt: bytes,
        gaps: Gaps | None = None,
    ) -> None:
        """Take a request that was not submitted; the times between its tokens go to `gaps`."""
        self._gaps = gaps
        self._host = host
        self._request = request
        self._fetch = ImageFetch(
            store, images, salt=salt, request_id=request.request_id, deliver=self._deliver, fail=self._fail
        )
        self._tokens: list[TokenOutput] = []
        self._error: DiptychError | None = None
        self._news = asyncio.Event()
        self._first_image: int | None = None
        self._is_scheduled = False
        self._submitted_at = self._features_at = self._scheduled_at = time.monotonic()
        self._first_token_at: float | None = None
        self._last_token_at = self._submitted_at

    async def __aenter__(self) -> "Generation":
        """Submit the request. Raises what `EngineHost.submit` raises."""
        try:
            await self._host.submit(self._request, self)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the work if it still goes on; the engine lets go of the features before their memory is freed."""
        try:
            # An engine that has stopped holds nothing.
            with suppress(UnavailableError):
                await self._host.abort(self._request.request_id, self)
        finally:
            await self._fetch.close()

    async def tokens(self, *, deadline: float) -> AsyncGenerator[list[TokenOutput], None]:
        """Tokens as they come, all that have gathered at once; ends after the one with a finish reason.

        Raises the error that the request ended with, and TimeoutError at `deadline`, a time of the event loop.
        """
        while True:
            async with asyncio.timeout_at(deadline):
                await self._news.wait()
            self._news.clear()
            tokens, self._tokens = self._tokens, []
            if tokens:
                yield tokens
                if tokens[-1].finish_reason is not None:
                    return
            if self._error is not None:
                raise self._error

    @property
    def timings(self) -> Timings:
        """Where the time went; complete once the last token is out."""
        first_token_at = self._first_token_at or self._last_token_at
        return Timings(
            queue=self._scheduled_at - self._features_at,
            encode_wait=self._features_at - self._submitted_at,
            prefill=first_token_at - self._scheduled_at,
            decode=self._last_token_at - first_token_at,
        )

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that the prefix cache held; certain from the first token on."""
        return self._request.num_saved_tokens

    @property
    def num_images_not_encoded(self) -> int:
        """Images that were not sent to be encoded for this request, so far."""
        return self._fetch.num_not_encoded

    def scheduled(self, at: float) -> None:
        """Hear that the first step worked on the request."""
        self._is_scheduled = True
        self._scheduled_at = at
        self._features_at = min(self._features_at, at)

    def token(self, token: TokenOutput, at: float) -> None:
        """Hear a token."""
        if self._first_token_at is None:
            self._first_token_at = at
        elif self._gaps is not None:
            self._gaps.observe(at - self._last_token_at)
        self._last_token_at = at
        self._tokens.append(token)
        self._news.set()

    def consumed(self, image_index: int) -> None:
        """Hear that an image's features are no longer needed."""
        self._fetch.consumed(image_index)

    def wanted(self, image_indices: Sequence[int]) -> None:
        """Hear which images are needed, and that none of those that were fetched before are."""
        self._first_image = min(image_indices, default=None)
        self._fetch.begin(image_indices)

    def failed(self, error: DiptychError) -> None:
        """Hear that the request ended with an error."""
        if error.reason == "NUMERIC_ERROR":
            self._fetch.forget()
        self._error = error
        self._news.set()

    def _deliver(self, index: int, features: ImageFeatures, fetch: int) -> None:
        if index == self._first_image and not self._is_scheduled:
            self._features_at = time.monotonic()
        self._host.features_arrived(self._request, index, features, fetch=fetch)

    def _fail(self, error: DiptychError) -> None:
        self._host.fail(self._request.request_id, error)
