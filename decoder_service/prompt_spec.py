"""What a caller asked to be completed, before it is a row of tokens.

Knows the three ways to state a prompt. Does not know protobuf (see `decoder_service.request_parser`) or tokens
(see `decoder_service.prompt`); nothing here has been checked but its shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """Who says a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a chat."""

    role: Role
    parts: tuple[str | bytes, ...]
    """What is said, in order: text, or the bytes of an image file."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat, laid out with the model's own template."""

    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text without a template; the begin token comes before it."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids as they are, with the image files in the order of their placeholder ranges."""

    token_ids: Sequence[int]
    images: tuple[bytes, ...] = ()


PromptSpec = ChatPrompt | TextPrompt | TokenPrompt


def has_images(spec: PromptSpec) -> bool:
    """Whether a prompt comes with images."""
    if isinstance(spec, ChatPrompt):
        return any(isinstance(part, bytes) for message in spec.messages for part in message.parts)
    return isinstance(spec, TokenPrompt) and bool(spec.images)
