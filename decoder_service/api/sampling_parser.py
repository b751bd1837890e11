"""From the sampling parameters on the wire to the engine's, or to the field at fault.

Knows protobuf and the ranges of fields, which the contract states too. Does not know the tokenizer: texts stay
texts here.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decoder_service.api.field_checks import Range, check_count, empty, present_fields
from decoder_service.prompt.prompt import check_token_ids, unknown_token_id
from decoder_service.sampling.sampling_params import SamplingParams
from diptych.v1 import generation_pb2 as pb

DEFAULT_MAX_TOKENS = 256
MAX_STOPS = 16
MAX_TEXT_LENGTH = 64
"""Characters of a stop text or a bad word."""
MAX_STOP_TOKEN_IDS = 64
MAX_ALLOWED_TOKEN_IDS = 1024
MAX_BAD_WORDS = 64
MAX_BIASES = 300
MAX_LOGPROBS = 20
MAX_COMPLETIONS = 8

_RANGES: Mapping[str, Range] = {
    "max_tokens": Range("1 or more", lambda value: value >= 1),
    "temperature": Range.between(0, 2),
    "top_p": Range("over 0, up to 1", lambda value: 0 < value <= 1),
    "min_p": Range.between(0, 1),
    "repetition_penalty": Range.between(0.1, 10),
    "frequency_penalty": Range.between(-2, 2),
    "presence_penalty": Range.between(-2, 2),
    "n": Range.between(1, MAX_COMPLETIONS),
    "logprobs": Range.between(0, MAX_LOGPROBS),
    "prompt_logprobs": Range.between(0, MAX_LOGPROBS),
}
_BIAS = Range.between(-100, 100)
_SCALARS = {*_RANGES, "min_tokens", "top_k", "seed", "ignore_eos"}
_FIELDS = _SCALARS | {"stop", "stop_token_ids", "include_stop", "logit_bias", "allowed_token_ids", "bad_words"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedSampling:
    """How a request's tokens are to be chosen, and its text cut off."""

    params: SamplingParams
    """Lacks `bad_words`. Holds DEFAULT_MAX_TOKENS where the caller set no `max_tokens`; the room left may be less."""
    max_tokens: int | None = None
    """What the caller set; None leaves it to the server."""
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    bad_words: tuple[str, ...] = ()


def parse_sampling(sampling: pb.SamplingParams, *, vocabulary_size: int) -> ParsedSampling:
    """Check and translate. Raises InvalidArgumentError with the field at fault."""
    present = present_fields(sampling, _FIELDS, prefix="sampling.")
    values: dict[str, Any] = {"max_tokens": DEFAULT_MAX_TOKENS, "seed": secrets.randbits(64)}
    values |= {name: value for name, value in present.items() if name in _SCALARS}
    limits = {"top_k": vocabulary_size, "min_tokens": values["max_tokens"]}
    # Of what is set alone, which is little: this is read before every first token.
    for name, value in present.items():
        allowed = Range.between(0, limits[name]) if name in limits else _RANGES.get(name)
        if allowed is not None:
            allowed.check(value, name=name, field=f"sampling.{name}")
    params = SamplingParams(
        **values,
        stop_token_ids=frozenset(
            _token_ids(sampling.stop_token_ids, "stop_token_ids", MAX_STOP_TOKEN_IDS, vocabulary_size)
        ),
        allowed_token_ids=tuple(
            _token_ids(sampling.allowed_token_ids, "allowed_token_ids", MAX_ALLOWED_TOKEN_IDS, vocabulary_size)
        ),
        logit_bias=_logit_bias(sampling.logit_bias, vocabulary_size),
    )
    return ParsedSampling(
        params=params,
        max_tokens=present.get("max_tokens"),
        stops=_texts(sampling.stop, "stop", MAX_STOPS),
        include_stop=sampling.include_stop,
        bad_words=_texts(sampling.bad_words, "bad_words", MAX_BAD_WORDS),
    )


def _token_ids(token_ids: Sequence[int], name: str, limit: int, vocabulary_size: int) -> Sequence[int]:
    check_count(token_ids, limit, f"sampling.{name}", "ids")
    check_token_ids(token_ids, vocabulary_size=vocabulary_size, field=f"sampling.{name}")
    return token_ids


def _logit_bias(biases: Mapping[int, float], vocabulary_size: int) -> tuple[tuple[int, float], ...]:
    check_count(biases, MAX_BIASES, "sampling.logit_bias", "ids")
    for token_id, bias in biases.items():
        field = f"sampling.logit_bias[{token_id}]"
        if token_id >= vocabulary_size:
            raise unknown_token_id(token_id, vocabulary_size=vocabulary_size, field=field)
        _BIAS.check(bias, name="a bias", field=field)
    return tuple(sorted(biases.items()))


def _texts(texts: Sequence[str], name: str, limit: int) -> tuple[str, ...]:
    check_count(texts, limit, f"sampling.{name}", "texts")
    for index, text in enumerate(texts):
        field = f"sampling.{name}[{index}]"
        if not text:
            raise empty(field)
        check_count(text, MAX_TEXT_LENGTH, field, "characters")
    return tuple(texts)
