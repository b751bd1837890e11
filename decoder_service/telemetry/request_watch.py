"""Watches one request from its arrival to its end, and tells metrics, log and trace of it.

Knows the stages of a request and how it can end. Does not know what happens in a stage. Nothing of the prompt
or the completion passes through here but counts. Exactly one line is logged for each request.

    begin --> named --> admitted --> first token --> finished
                  '-------- or an error, at any point
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.calls.call import Call, current_call
from common.errors import Code, DiptychError
from common.security.principal import current_principal
from common.telemetry.spans import Attributes
from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.timings import Timings
from decoder_service.telemetry.request_metrics import RequestMetrics

_log = logging.getLogger(__name__)

_OURS = frozenset({Code.INTERNAL, Code.UNAVAILABLE, Code.FAILED_PRECONDITION})
"""What fails a request for a reason that is not the caller's."""


class RequestWatch:
    """One request; its methods are called on the event loop, once but for `first_token`, which every message calls."""

    def __init__(self, metrics: RequestMetrics, call: Call, *, caller: str = "") -> None:
        """Watch the request that `call` brought, of a caller by name where that is known."""
        self._metrics = metrics
        self._call = call
        self._caller = caller
        self._adapter = ""
        self._arrived_at = time.monotonic()
        self._admitted_at: float | None = None
        self._first_token_at: float | None = None
        self._prompt_tokens = 0
        self._num_images = 0
        self._count_completion_tokens: Callable[[], int] = lambda: 0
        self._is_finished = False

    def named(self, request_id: str, attributes: Attributes, *, adapter: str = "") -> None:
        """Hear what the request is called and asks for."""
        self._call.request_id = request_id
        self._adapter = adapter
        if adapter:
            self._metrics.adapters[adapter].inc()
        self._call.span.set({"gen_ai.response.id": request_id, **attributes})

    def admitted(
        self, *, at: float, prompt_tokens: int, num_images: int, count_completion_tokens: Callable[[], int] = lambda: 0
    ) -> None:
        """Hear that the request is let in; `count_completion_tokens` says how many tokens its caller was sent.

        Its preparation ended `at` a time of the monotonic clock, from which its timings are counted.
        """
        self._admitted_at = at
        self._prompt_tokens = prompt_tokens
        self._num_images = num_images
        self._count_completion_tokens = count_completion_tokens
        metrics, exemplar = self._metrics, self._call.exemplar
        metrics.prepare.observe(at - self._arrived_at, exemplar)
        metrics.request_prompt_tokens.observe(prompt_tokens, exemplar)
        metrics.request_images.observe(num_images, exemplar)
        self._call.span.record("prepare", start=self._arrived_at, end=at)

    def first_token(self) -> None:
        """Hear that there is a token; what is called again is not heard."""
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
            self._metrics.time_to_first_token.observe(self._first_token_at - self._arrived_at, self._call.exemplar)

    def finished(
        self,
        reason: FinishReason,
        timings: Timings,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        images_not_encoded: int,
        completion_tokens: int,
        timed_tokens: int,
    ) -> None:
        """Hear that the completion is whole, or the last of several; its times are told, and the tokens of all.

        `timed_tokens` are those of this completion that came in the times, without what a broken call had brought.
        """
        self._is_finished = True
        seconds = time.monotonic() - self._arrived_at
        metrics, exemplar = self._metrics, self._call.exemplar
        metrics.finished[reason.value].inc()
        metrics.prompt_tokens.inc(prompt_tokens)
        metrics.prompt_tokens_cached.inc(cached_tokens)
        metrics.request_generation_tokens.observe(completion_tokens, exemplar)
        metrics.latency.observe(seconds, exemplar)
        metrics.queue.observe(timings.queue, exemplar)
        metrics.prefill.observe(timings.prefill, exemplar)
        metrics.decode.observe(timings.decode, exemplar)
        if self._num_images > images_not_encoded:
            metrics.encode_wait.observe(timings.encode_wait, exemplar)
        if timed_tokens > 1:
            metrics.time_per_output_token.observe(timings.decode / (timed_tokens - 1), exemplar)
        self._trace(reason, timings, prompt_tokens, cached_tokens, completion_tokens)
        self._log(
            reason.value,
            {
                "prompt_tokens": prompt_tokens,
                "cached_tokens": cached_tokens,
                "images": self._num_images,
                "images_not_encoded": images_not_encoded,
                "completion_tokens": completion_tokens,
                "seconds": round(seconds, 4),
                "encode_wait_seconds": round(timings.encode_wait, 4),
                "queue_seconds": round(timings.queue, 4),
                "prefill_seconds": round(timings.prefill, 4),
                "decode_seconds": round(timings.decode, 4),
            },
        )

    def ended(self, error: BaseException) -> None:
        """Hear that the request ended with an error or was left; nothing where it had been finished."""
        if self._is_finished:
            return
        self._is_finished = True
        outcome, reason = self._outcome(self._call.ending or error)
        if outcome == "refused":
            self._metrics.refused.count(reason)
        else:
            self._metrics.finished[outcome].inc()
            if outcome == "error":
                self._metrics.failed.count(reason)
        known: dict[str, object] = {}
        if self._admitted_at is not None:
            known = {
                "prompt_tokens": self._prompt_tokens,
                "images": self._num_images,
                "completion_tokens": self._count_completion_tokens(),
            }
        self._log(outcome, {"reason": reason, **known, "seconds": round(time.monotonic() - self._arrived_at, 4)})

    def _outcome(self, error: BaseException) -> tuple[str, str]:
        """How the request ended, and the reason."""
        if isinstance(error, DiptychError):
            if error.code in (Code.DEADLINE_EXCEEDED, Code.CANCELLED):
                return ("deadline" if error.code is Code.DEADLINE_EXCEEDED else "abort"), error.reason
            # What is not taken up is refused, even where that is our fault; a bug is a failure at any time.
            is_failure = error.code is Code.INTERNAL or (self._admitted_at is not None and error.code in _OURS)
            return ("error" if is_failure else "refused"), error.reason
        # The server cancels the handler's task, or closes its stream, where the caller is gone.
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return ("deadline", "DEADLINE_EXCEEDED") if self._call.is_overdue else ("abort", "CANCELLED")
        return "error", "INTERNAL"

    def _log(self, outcome: str, values: dict[str, object]) -> None:
        asked = {name: value for name, value in (("caller", self._caller), ("lora", self._adapter)) if value}
        _log.info("request finished", extra={"outcome": outcome, **asked, **values})

    def _trace(
        self, reason: FinishReason, timings: Timings, prompt_tokens: int, cached_tokens: int, completion_tokens: int
    ) -> None:
        span, start = self._call.span, self._admitted_at or self._arrived_at
        stages = {
            "encode wait": timings.encode_wait,
            "queue": timings.queue,
            "prefill": timings.prefill,
            "decode": timings.decode,
        }
        for name, seconds in stages.items():
            span.record(name, start=start, end=start + seconds)
            start += seconds
        span.set(
            {
                "gen_ai.response.finish_reasons": (reason.value,),
                "gen_ai.usage.input_tokens": prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": cached_tokens,
                "gen_ai.usage.output_tokens": completion_tokens,
            }
        )


@contextmanager
def watching(metrics: RequestMetrics) -> Iterator[RequestWatch]:
    """Watch the request of this call while inside; an error that passes ends it."""
    watch = RequestWatch(metrics, current_call(), caller=current_principal().name)
    try:
        yield watch
    except BaseException as error:
        watch.ended(error)
        raise
