"""What a caller asked to be completed, before it is a row of tokens.

Knows the three ways to state a prompt. Does not know protobuf (see `decoder_service.api.request_parser`) or tokens
(see `decoder_service.prompt.prompt`); nothing here has been checked but its shape.
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

    @property
    def texts(self) -> list[str]:
        """What is said in words, in order."""
        return [part for message in self.messages for part in message.parts if isinstance(part, str)]

    @property
    def images(self) -> list[bytes]:
        """The image files, in order."""
        return [part for message in self.messages for part in message.parts if isinstance(part, bytes)]


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
    return not isinstance(spec, TextPrompt) and bool(spec.images)


CHARACTERS_PER_TOKEN = 4
"""About what texts in many languages need; see `guess_num_tokens`."""


def guess_num_tokens(spec: PromptSpec, *, most: int) -> int:
    """About how many tokens a prompt makes, but for its images, of which nothing is known yet.

    No more than `most`, the model's length: one that makes more is refused soon, and keeps nobody out until then.
    """
    if isinstance(spec, TokenPrompt):
        return min(most, len(spec.token_ids))
    texts = [spec.text] if isinstance(spec, TextPrompt) else spec.texts
    return min(most, sum(map(len, texts)) // CHARACTERS_PER_TOKEN)


def num_picture_bytes(spec: PromptSpec) -> int:
    """Bytes of all picture files of a prompt."""
    return 0 if isinstance(spec, TextPrompt) else sum(map(len, spec.images))
