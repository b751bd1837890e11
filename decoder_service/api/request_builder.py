"""From what a caller asked and how it was laid out to what the engine runs.

Knows both sides' words for a request, and what is left open for the server to choose. Does not know the engine.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from common.security.principal import current_principal
from decoder_service.api.model_info import ModelInfo
from decoder_service.api.request_parser import ParsedRequest
from decoder_service.cache.feature_store import PromptImage
from decoder_service.engine.caller import scoped_name, tenant_of
from decoder_service.engine.request import Request
from decoder_service.prompt.prompt import Prompt
from decoder_service.prompt.prompt_spec import TextPrompt
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.sampling.bad_words import bad_token_sequences
from decoder_service.scheduling.capacity import Capacity
from decoder_service.structured.structure import Matcher
from decoder_service.text.text_stream import TextStream


class RequestBuilder:
    """Makes the requests of one engine, in the order of their arrival."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo, capacity: Capacity) -> None:
        """Take the limits of a request, and what knows the model's words."""
        self._tokenizer = tokenizer
        self._info = info
        self._capacity = capacity
        self._arrivals = itertools.count()

    def build(
        self, parsed: ParsedRequest, prompt: Prompt, images: Sequence[PromptImage], matcher: Matcher | None
    ) -> Request:
        """The engine's view of a request; its `max_tokens` is what is left of the model's length if unset.

        Raises InvalidArgumentError where it could never run to its end.
        """
        sampling, capacity = parsed.sampling.params, self._capacity
        if parsed.sampling.max_tokens is None:
            room = capacity.max_tokens(len(prompt.token_ids), n=sampling.n)
            sampling = replace(sampling, max_tokens=max(1, min(sampling.max_tokens, room)))
        if parsed.resumption is not None:
            # They came before the first token.
            sampling = replace(sampling, prompt_logprobs=None)
        if parsed.sampling.bad_words:
            sequences = bad_token_sequences(parsed.sampling.bad_words, self._tokenizer.encode_text)
            sampling = replace(sampling, bad_token_sequences=sequences)
        capacity.check(len(prompt.token_ids), sampling.max_tokens, n=sampling.n)
        return Request(
            request_id=scoped_name(current_principal(), parsed.request_id),
            prompt_token_ids=prompt.token_ids,
            placeholders=prompt.placeholders,
            image_identities=tuple(image.spec.image_hash for image in images),
            cache_salt=parsed.cache_salt,
            adapter=parsed.adapter,
            sampling=sampling,
            end_token_ids=self._info.end_token_ids,
            arrival=next(self._arrivals),
            priority=parsed.priority,
            tenant=tenant_of(current_principal(), parsed.cache_salt),
            matcher=matcher,
        )

    def text_stream(self, parsed: ParsedRequest) -> TextStream:
        """The text of one of its completions."""
        return TextStream(
            self._tokenizer,
            parsed.sampling.stops,
            continues=isinstance(parsed.prompt, TextPrompt),
            include_stop=parsed.sampling.include_stop,
            min_tokens=parsed.sampling.params.min_tokens,
        )
