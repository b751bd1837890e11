"""From the messages on the wire to what they ask for, or to the field at fault.

Knows protobuf and the limits of fields; those of sampling are in `sampling_parser`. Does not know tokens, images or
the model's length: those are checked when the prompt is built and admitted. A field that is added to the contract
later is refused when present, until it is read here; nothing is ignored.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import InvalidArgumentError
from decoder_service.adapters.adapter_ref import MAX_NAME, NO_ADAPTER, AdapterRef
from decoder_service.api.field_checks import Range, check_count, missing, present_fields
from decoder_service.api.resume_parser import parse_resumption
from decoder_service.api.sampling_parser import ParsedSampling, parse_sampling
from decoder_service.api.structure_parser import parse_structure
from decoder_service.prompt.prompt_spec import ChatMessage, ChatPrompt, PromptSpec, Role, TextPrompt, TokenPrompt
from decoder_service.structured.structure import Structure
from decoder_service.text.resumption import Resumption
from diptych.v1 import generation_pb2 as pb

MAX_SALT_BYTES = 64
MAX_PARTS = 16_384
"""Most messages of a chat, and most parts of all its messages: small ones cost far more memory than wire."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ROLES = {pb.ROLE_SYSTEM: Role.SYSTEM, pb.ROLE_USER: Role.USER, pb.ROLE_ASSISTANT: Role.ASSISTANT}
MIN_PRIORITY = -10

_REQUEST_FIELDS = {
    "request_id",
    "chat",
    "text",
    "token_ids",
    "sampling",
    "structured",
    "priority",
    "cache_salt",
    "lora",
    "resume_from",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """What a GenerateRequest asks for."""

    request_id: str
    prompt: PromptSpec
    sampling: ParsedSampling
    priority: int
    structure: Structure | None
    """What the completions are kept inside."""
    resumption: Resumption | None
    """What the caller has of the completion already."""
    cache_salt: bytes
    adapter: AdapterRef


def parse_generate_request(
    request: pb.GenerateRequest, *, vocabulary_size: int, max_priority: int, adapters: Mapping[str, AdapterRef]
) -> ParsedRequest:
    """Check and translate a request. Raises InvalidArgumentError with the field at fault."""
    present_fields(request, _REQUEST_FIELDS, prefix="")
    Range.between(MIN_PRIORITY, max_priority).check(request.priority, name="priority", field="priority")
    check_count(request.cache_salt, MAX_SALT_BYTES, "cache_salt", "bytes")
    return ParsedRequest(
        request_id=_parse_request_id(request.request_id),
        prompt=parse_prompt(request),
        sampling=parse_sampling(request.sampling, vocabulary_size=vocabulary_size),
        structure=parse_structure(request),
        resumption=parse_resumption(request, vocabulary_size=vocabulary_size),
        priority=request.priority,
        cache_salt=request.cache_salt,
        adapter=_parse_adapter(request.lora, adapters) if request.HasField("lora") else NO_ADAPTER,
    )


def drop_pictures(request: pb.GenerateRequest) -> None:
    """Empty a request of the bytes of its pictures, which whoever parsed it has."""
    for message in request.chat.messages:
        for part in message.parts:
            if part.HasField("image"):
                part.image.ClearField("data")
    for image in request.token_ids.images:
        image.ClearField("data")


def request_digest(request: pb.GenerateRequest, pictures: Sequence[bytes]) -> bytes:
    """What is equal for two requests that ask for the same under the same name; names that are drawn need none.

    The request comes without its pictures' bytes, as Protobuf would write them all while nothing else of the process
    runs. A stream that is gone on with is the same request as before, wherever it broke.
    """
    if not request.request_id:
        return b""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(len(picture).to_bytes(8, "little"))
        digest.update(picture)
    if request.HasField("resume_from"):
        whole = pb.GenerateRequest()
        whole.CopyFrom(request)
        whole.ClearField("resume_from")
        request = whole
    digest.update(request.SerializeToString(deterministic=True))
    return digest.digest()


def parse_prompt(request: pb.GenerateRequest | pb.TokenizeRequest) -> PromptSpec:
    """Translate the prompt of either request. Raises InvalidArgumentError with the field at fault."""
    kind = request.WhichOneof("prompt")
    if kind == "chat":
        return _parse_chat(request.chat.messages)
    if kind == "text":
        return TextPrompt(request.text.text)
    if kind == "token_ids":
        images = request.token_ids.images
        check_count(images, MAX_PARTS, "token_ids.images", "images")
        return TokenPrompt(request.token_ids.ids, tuple(image.data for image in images))
    raise missing("prompt")


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


def _parse_adapter(name: str, adapters: Mapping[str, AdapterRef]) -> AdapterRef:
    if name not in adapters:
        message = f"there is no adapter {name[:MAX_NAME]!r}; GetModelInfo lists those that there are"
        raise InvalidArgumentError("UNKNOWN_ADAPTER", message, field="lora")
    return adapters[name]


def _parse_chat(messages: Sequence[pb.Message]) -> ChatPrompt:
    check_count(messages, MAX_PARTS, "chat.messages", "messages")
    num_parts = sum(len(message.parts) for message in messages)
    check_count(range(num_parts), MAX_PARTS, "chat.messages", "parts")
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
        raise missing(field)
    return part.text if kind == "text" else part.image.data
