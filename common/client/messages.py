"""Builds requests from plain Python values.

A message is `{"role": "user", "content": ...}`; its content is a text, or a list of `{"type": "text", "text":
...}` and `{"type": "image", ...}` with `path` or `data` (the bytes of the file). Knows the request messages.
Does not know calls, and checks only what it must read: the server judges the rest.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from diptych.v1 import generation_pb2 as pb

ChatMessage: TypeAlias = Mapping[str, Any]
"""One turn, as above."""
ImageSource: TypeAlias = bytes | str | Path
"""The bytes of a picture's file, or its path."""
Prompt: TypeAlias = Sequence[ChatMessage] | pb.Chat | pb.RawText | pb.TokenIds
"""What to complete."""


_STRUCTURES = ("json_schema", "json_object", "regex", "grammar", "choice")
_REQUEST_FIELDS = ("request_id", "cache_salt", "priority", "lora", *_STRUCTURES)
_MESSAGE = 'a message is {"role": ..., "content": ...}'
_PART = 'a part is {"type": "text", "text": ...} or {"type": "image", "path" or "data": ...}'
_ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}


class GenerateOptions(TypedDict, total=False):
    """Whose request it is, and how tokens are chosen; what is left out takes the server's default."""

    request_id: str
    cache_salt: bytes
    priority: int
    lora: str

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    allowed_token_ids: Sequence[int]
    bad_words: Sequence[str]
    seed: int
    n: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop: bool
    ignore_eos: bool
    json_schema: str | Mapping[str, Any]
    json_object: bool
    regex: str
    grammar: str
    choice: Sequence[str]

    logprobs: int
    prompt_logprobs: int


def user_message(text: str, images: Iterable[ImageSource] = ()) -> ChatMessage:
    """One user message: the pictures first, then the text."""
    pictures = [{"type": "image", "data": _image_bytes(image)} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def chat(messages: Iterable[ChatMessage]) -> pb.Chat:
    """A chat, laid out with the model's template. Raises ValueError for a message of another form."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise ValueError("a chat is a list of messages")
    return pb.Chat(messages=[_message(message) for message in messages])


def raw_text(text: str) -> pb.RawText:
    """Text without a template."""
    return pb.RawText(text=text)


def token_ids(ids: Iterable[int], images: Iterable[ImageSource] = ()) -> pb.TokenIds:
    """Token ids as they are, with the pictures for their placeholders."""
    return pb.TokenIds(ids=ids, images=[_image(image) for image in images])


def generate_request(prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """The request for one completion."""
    sampling: dict[str, Any] = {key: value for key, value in options.items() if key not in _REQUEST_FIELDS}
    return pb.GenerateRequest(
        request_id=options.get("request_id", ""),
        cache_salt=options.get("cache_salt", b""),
        priority=options.get("priority"),
        lora=options.get("lora"),
        sampling=pb.SamplingParams(**sampling),
        structured=_structured({key: value for key, value in options.items() if key in _STRUCTURES}),
        **_prompt_field(prompt),
    )


def _structured(given: Mapping[str, Any]) -> pb.StructuredOutput | None:
    """What the completion is kept inside; None for any text. Raises ValueError for two languages at once."""
    if len(given) > 1:
        raise ValueError(f"give one of {', '.join(given)}")
    structured = pb.StructuredOutput()
    for name, value in given.items():
        if name == "choice":
            structured.choice.texts.extend(value)
        else:
            is_schema = name == "json_schema" and not isinstance(value, str)
            setattr(structured, name, json.dumps(value) if is_schema else value)
    return structured if given else None


def tokenize_request(prompt: Prompt) -> pb.TokenizeRequest:
    """The request to lay out a prompt."""
    return pb.TokenizeRequest(**_prompt_field(prompt))


def _prompt_field(prompt: Prompt) -> dict[str, Any]:
    """The one field of a request's `prompt` that is set, by name."""
    if isinstance(prompt, pb.RawText):
        return {"text": prompt}
    if isinstance(prompt, pb.TokenIds):
        return {"token_ids": prompt}
    return {"chat": prompt if isinstance(prompt, pb.Chat) else chat(prompt)}


def _message(message: ChatMessage) -> pb.Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(_MESSAGE)
    _refuse(message.keys() - {"role", "content"}, _MESSAGE)
    role = _ROLES.get(str(message["role"]))
    if role is None:
        raise ValueError(f"no such role: {message['role']!r}")
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple):
        raise ValueError("the content of a message is a text or a list of parts")
    return pb.Message(role=role, parts=[_part(part) for part in parts])


def _part(part: Mapping[str, Any]) -> pb.Part:
    match part:
        case {"type": "text", "text": str(text), **others}:
            _refuse(others, _PART)
            return pb.Part(text=text)
        case {"type": "image", "data": bytes(data), **others}:
            _refuse(others, _PART)
            return pb.Part(image=_image(data))
        case {"type": "image", "path": str() | Path() as path, **others}:
            _refuse(others, _PART)
            return pb.Part(image=_image(path))
    raise ValueError(_PART)


def _refuse(others: Collection[str], form: str) -> None:
    if others:
        raise ValueError(f"unknown key {next(iter(others))!r}: {form}")


def _image(source: ImageSource) -> pb.Image:
    return pb.Image(data=_image_bytes(source))


def _image_bytes(source: ImageSource) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()
