"""One request on the event loop, from its submission to the last token of its last completion.

Knows the engine's host, the request's images and its times. Does not know text or messages.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol

from common.errors import DiptychError, UnavailableError
from decoder_service.cache.feature_store import FeatureStore, PromptImage
from decoder_service.engine.host import EngineHost
from decoder_service.engine.image_fetch import ImageFetch
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.engine.request import Request
from decoder_service.engine.step import TokenOutput, WantedImages
from decoder_service.engine.timings import Stopwatch, Timings
from decoder_service.vision.image_encoder import ImageFeatures


class Gaps(Protocol):
    """Takes the times between tokens, or between those of one step and the ones before."""

    def observe(self, value: float) -> None:
        """Count one, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How tokens reach their reader."""

    interval: int = 1
    """Tokens of a completion that are handed over together, at least; its first waits for none, nor does its last."""
    max_unread_tokens: int = sys.maxsize
    """Tokens that the reader may be behind before its request is paused."""


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
        on_begun: Callable[[], None] = lambda: None,
        pace: Pace | None = None,
    ) -> None:
        """Take a request that was not submitted; the times between its tokens go to `gaps`.

        `on_begun` is called when a step first works on it. `tokens` hands over at this pace, each at once where unset.
        """
        self._gaps = gaps
        self._on_begun = on_begun
        self._pace = pace or Pace()
        self._is_paused = False
        self._host = host
        self._request = request
        n = request.sampling.n
        # Completions that were preempted come back one by one, and each needs the images anew.
        self._fetches = [
            ImageFetch(
                store,
                images,
                salt=salt,
                request_id=request.request_id,
                deliver=partial(self._deliver, index),
                fail=self._fail,
            )
            for index in range(n)
        ]
        self._unfinished = set(range(n))
        self._tokens: list[TokenOutput] = []
        self._are_due = False
        self._error: DiptychError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._has_rung = False
        self._first_image: int | None = None
        self._stopwatch = Stopwatch(now=time.monotonic(), n=n)

    async def __aenter__(self) -> "Generation":
        """Submit the request. Raises what `EngineHost.submit` raises."""
        try:
            await self.submit()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def submit(self) -> None:
        """Hand the request to the engine, which takes it between two steps; `__aexit__` must follow, come what may."""
        await self._host.submit(self._request, self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the work if it still goes on; the engine lets go of the features before their memory is freed."""
        try:
            # An engine that has stopped holds nothing.
            with suppress(UnavailableError):
                await self._host.abort(self._request.request_id, self)
        finally:
            for fetch in self._fetches:
                fetch.stop()
            for fetch in self._fetches:
                await fetch.close()

    async def first_news(self, *, until: float) -> None:
        """Wait until `tokens` would have something to say, or until a time of the event loop."""
        loop = asyncio.get_running_loop()
        if not self._are_due and self._error is None and loop.time() < until:
            self._reader = loop.create_future()
            alarm = loop.call_at(until, self._wake)
            try:
                await self._reader
            finally:
                alarm.cancel()

    async def tokens(self, *, deadline: float) -> AsyncGenerator[list[TokenOutput], None]:
        """Tokens as they are due, all that have gathered at once; ends when all completions have ended.

        Those of a completion that was ended may still be among them. Raises the error that the request ended
        with, and TimeoutError at `deadline`, a time of the event loop.
        """
        loop = asyncio.get_running_loop()
        # One alarm for all waits: a time limit of its own for each costs as much as the rest of a token's way.
        alarm = loop.call_at(deadline, self._ring)
        try:
            while self._unfinished:
                is_late = self._has_rung or loop.time() >= deadline
                if not self._are_due and self._error is None and not is_late:
                    self._reader = loop.create_future()
                    await self._reader
                    is_late = self._has_rung
                tokens, self._tokens, self._are_due = self._tokens, [], False
                if self._is_paused:
                    self._is_paused = False
                    self._host.resume(self._request.request_id)
                for token in tokens:
                    if token.finish_reason is not None:
                        self._unfinished.discard(token.index)
                if tokens:
                    yield tokens
                if self._unfinished and is_late:
                    raise TimeoutError
                if self._unfinished and self._error is not None:
                    raise self._error
        finally:
            alarm.cancel()

    def end(self, index: int) -> None:
        """End a completion whose text is complete; the others go on."""
        if index in self._unfinished:
            self._unfinished.remove(index)
            if self._unfinished:  # The last one ends with the request.
                self._host.end(self._request.request_id, index, then=self._fetches[index].stop)

    @property
    def submitted_at(self) -> float:
        """The moment from which its times are counted."""
        return self._stopwatch.submitted_at

    def timings(self, index: int) -> Timings:
        """Where a completion's time went; complete once its last token is out."""
        return self._stopwatch.timings(index)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that the prefix cache held; certain from the first token on."""
        # Of a completion that was taken up its own tokens may be cached too.
        return min(self._request.num_saved_tokens, self._request.num_prompt_tokens)

    @property
    def num_images_not_encoded(self) -> int:
        """Images that were not sent to be encoded for this request, so far."""
        return len(self._request.placeholders) - len(set().union(*(fetch.encoded for fetch in self._fetches)))

    def scheduled(self, at: float) -> None:
        """Hear that the first step worked on the request."""
        self._stopwatch.scheduled(at)
        self._on_begun()

    def token(self, token: TokenOutput, at: float) -> None:
        """Hear a token."""
        gap = self._stopwatch.token(token.index, at)
        # Those that one step told come together: the time since the one before them is counted once.
        if gap and self._gaps is not None:
            self._gaps.observe(gap)
        self._tokens.append(token)
        pace, count = self._pace, len(self._tokens)
        if count > pace.max_unread_tokens and not self._is_paused:
            self._is_paused = True
            self._host.pause(self._request.request_id)
        is_end = gap is None or token.finish_reason is not None
        # Not so many that a reader who is not behind would be paused.
        if is_end or count >= pace.interval * len(self._unfinished) or count >= pace.max_unread_tokens:
            self._are_due = True
            self._wake()

    def consumed(self, ref: ImageRef) -> None:
        """Hear that an image's features are no longer needed for a completion."""
        self._fetches[ref.index].consumed(ref.image_index)

    def wanted(self, wanted: WantedImages) -> None:
        """Hear which images a completion needs, and that none of those that were fetched for it before are."""
        if wanted.index == 0:
            self._first_image = min(wanted.image_indices, default=None)
        if wanted.index in self._unfinished:
            self._fetches[wanted.index].begin(wanted.image_indices)

    def failed(self, error: DiptychError) -> None:
        """Hear that the request ended with an error."""
        if error.reason == "NUMERIC_ERROR":
            self._fetches[0].forget()
        self._error = error
        self._wake()

    def _ring(self) -> None:
        # Told by a flag: an alarm may come a moment before the loop's clock shows its time.
        self._has_rung = True
        self._wake()

    def _wake(self) -> None:
        """Let the reader look."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _deliver(self, index: int, image_index: int, features: ImageFeatures, fetch: int) -> None:
        if image_index == self._first_image:
            self._stopwatch.features_arrived(time.monotonic())
        ref = ImageRef(self._request.request_id, image_index, index)
        self._host.features_arrived(ref, features, fetch=fetch)

    def _fail(self, error: DiptychError) -> None:
        self._host.fail(self._request.request_id, error)
