"""From the messages on the wire to what they ask for, or to the field at fault.

Knows protobuf and the ranges of fields. Does not know tokens, images or the model's length: those are checked
when the prompt is built and admitted. A field of the contract that is not built yet is refused when present,
and so is one that is added to the contract later; nothing is ignored.
"""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from common.errors import InvalidArgumentError
from decoder_service.prompt import check_token_ids
from decoder_service.prompt_spec import ChatMessage, ChatPrompt, PromptSpec, Role, TextPrompt, TokenPrompt
from decoder_service.sampling_params import SamplingParams
from diptych.v1 import generation_pb2 as pb

DEFAULT_MAX_TOKENS = 256
MAX_STOPS = 16
MAX_STOP_LENGTH = 64
MAX_STOP_TOKEN_IDS = 64
MAX_SALT_BYTES = 64
MAX_PARTS = 16_384
"""Most messages of a chat, and most parts of all its messages: small ones cost far more memory than wire."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ROLES = {pb.ROLE_SYSTEM: Role.SYSTEM, pb.ROLE_USER: Role.USER, pb.ROLE_ASSISTANT: Role.ASSISTANT}
_REQUEST_FIELDS = {"request_id", "chat", "text", "token_ids", "sampling", "cache_salt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """What a GenerateRequest asks for."""

    request_id: str
    prompt: PromptSpec
    sampling: SamplingParams
    """Holds DEFAULT_MAX_TOKENS where the caller set no `max_tokens`; the room left may be less."""
    max_tokens: int | None
    """What the caller set; None leaves it to the server."""
    stops: tuple[str, ...]
    cache_salt: bytes


def parse_generate_request(request: pb.GenerateRequest, *, vocabulary_size: int) -> ParsedRequest:
    """Check and translate a request. Raises InvalidArgumentError with the field at fault."""
    _present_fields(request, _REQUEST_FIELDS, prefix="")
    _check_count(request.cache_salt, MAX_SALT_BYTES, "cache_salt", "bytes")
    sampling = request.sampling
    return ParsedRequest(
        request_id=_parse_request_id(request.request_id),
        prompt=parse_prompt(request),
        sampling=_parse_sampling(sampling, vocabulary_size),
        max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else None,
        stops=_parse_stops(sampling.stop),
        cache_salt=request.cache_salt,
    )


def parse_prompt(request: pb.GenerateRequest | pb.TokenizeRequest) -> PromptSpec:
    """Translate the prompt of either request. Raises InvalidArgumentError with the field at fault."""
    kind = request.WhichOneof("prompt")
    if kind == "chat":
        return _parse_chat(request.chat.messages)
    if kind == "text":
        return TextPrompt(request.text.text)
    if kind == "token_ids":
        images = request.token_ids.images
        _check_count(images, MAX_PARTS, "token_ids.images", "images")
        return TokenPrompt(request.token_ids.ids, tuple(image.data for image in images))
    raise _missing("prompt")


def _parse_request_id(request_id: str) -> str:
    if not request_id:
        return secrets.token_hex(16)
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidArgumentError(
            "INVALID_REQUEST_ID",
            'a request id has at most 64 letters, digits, "-", "_" and "."',
            field="request_id",
            metadata={"limit": 64},
        )
    return request_id


def _parse_chat(messages: Sequence[pb.Message]) -> ChatPrompt:
    _check_count(messages, MAX_PARTS, "chat.messages", "messages")
    num_parts = sum(len(message.parts) for message in messages)
    _check_count(range(num_parts), MAX_PARTS, "chat.messages", "parts")
    return ChatPrompt(
        tuple(_parse_message(message, f"chat.messages[{index}]") for index, message in enumerate(messages))
    )


def _parse_message(message: pb.Message, field: str) -> ChatMessage:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgumentError("INVALID_ROLE", "the role must be system, user or assistant", field=f"{field}.role")
    parts = tuple(_parse_part(part, f"{field}.parts[{index}]") for index, part in enumerate(message.parts))
    return ChatMessage(role=role, parts=parts)


def _parse_part(part: pb.Part, field: str) -> str | bytes:
    kind = part.WhichOneof("part")
    if kind is None:
        raise _missing(field)
    return part.text if kind == "text" else part.image.data


@dataclass(frozen=True, slots=True)
class _Range:
    """The values that a number may have; NaN is in no range."""

    text: str
    holds: Callable[[float], bool]


_RANGES: Mapping[str, _Range] = {
    "max_tokens": _Range("1 or more", lambda value: value >= 1),
    "temperature": _Range("0 to 2", lambda value: 0 <= value <= 2),
    "top_p": _Range("over 0, up to 1", lambda value: 0 < value <= 1),
    "min_p": _Range("0 to 1", lambda value: 0 <= value <= 1),
}
_SCALARS = {*_RANGES, "top_k", "seed", "ignore_eos"}


def _parse_sampling(sampling: pb.SamplingParams, vocabulary_size: int) -> SamplingParams:
    present = _present_fields(sampling, _SCALARS | {"stop", "stop_token_ids", "n"}, prefix="sampling.")
    if present.get("n", 1) != 1:
        raise _unsupported("sampling.n")
    top_k = _Range(f"0 to {vocabulary_size}", lambda value: value <= vocabulary_size)
    for name, allowed in (*_RANGES.items(), ("top_k", top_k)):
        if name in present and not allowed.holds(got := present[name]):
            raise InvalidArgumentError(
                "VALUE_OUT_OF_RANGE",
                f"{name} is {got}; it must be {allowed.text}",
                field=f"sampling.{name}",
                metadata={"allowed": allowed.text, "got": got},
            )
    stop_token_ids = sampling.stop_token_ids
    _check_count(stop_token_ids, MAX_STOP_TOKEN_IDS, "sampling.stop_token_ids", "ids")
    check_token_ids(stop_token_ids, vocabulary_size=vocabulary_size, field="sampling.stop_token_ids")
    values: dict[str, Any] = {"max_tokens": DEFAULT_MAX_TOKENS, "seed": secrets.randbits(64)}
    values |= {name: value for name, value in present.items() if name in _SCALARS}
    return SamplingParams(**values, stop_token_ids=frozenset(stop_token_ids))


def _parse_stops(stops: Sequence[str]) -> tuple[str, ...]:
    _check_count(stops, MAX_STOPS, "sampling.stop", "texts")
    for index, stop in enumerate(stops):
        field = f"sampling.stop[{index}]"
        if not stop:
            raise _missing(field)
        _check_count(stop, MAX_STOP_LENGTH, field, "characters")
    return tuple(stops)


def _present_fields(message: Message, supported: Set[str], *, prefix: str) -> dict[str, Any]:
    """The fields that are set, by name; raises for any that is not supported."""
    present = {descriptor.name: value for descriptor, value in message.ListFields()}
    for name in present:
        if name not in supported:
            raise _unsupported(prefix + name)
    return present


def _check_count(things: Sized, limit: int, field: str, unit: str) -> None:
    got = len(things)
    if got > limit:
        raise InvalidArgumentError(
            "TOO_MANY_VALUES",
            f"there are {got} {unit}; at most {limit} are accepted",
            field=field,
            metadata={"limit": limit, "got": got, "unit": unit},
        )


def _missing(field: str) -> InvalidArgumentError:
    return InvalidArgumentError("MISSING_FIELD", "this field must be set", field=field)


def _unsupported(field: str) -> InvalidArgumentError:
    return InvalidArgumentError("UNSUPPORTED_FIELD", "this field is not supported yet", field=field)
