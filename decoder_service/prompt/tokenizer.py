"""What a tokenizer is to the service: text to ids, ids to text, chats to ids, whatever file it comes from.

Knows what all kinds share. Does not know files (see `decoder_service.prompt.tokenizer_files`) or UTF-8 split over
tokens (see `decoder_service.text.detokenizer`). Ids of control tokens come from files, never from constants, and text
never becomes one of them, whatever it says.
"""

from abc import ABC, abstractmethod

from decoder_service.prompt.chat_template import ChatTemplate
from decoder_service.prompt.image_layout import ImageTokenIds
from decoder_service.text.detokenizer import TokenTexts


class Tokenizer(ABC):
    """One loaded tokenizer. Safe to use from several threads."""

    def __init__(
        self,
        *,
        texts: TokenTexts,
        bos_id: int,
        eos_id: int,
        image_ids: ImageTokenIds | None,
        chat_template: ChatTemplate | None,
    ) -> None:
        """Keep what the file said."""
        self.texts = texts
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.image_ids = image_ids
        """None where the tokenizer has no tokens for images."""
        self.chat_template = chat_template
        """None where the checkpoint was not taught chats."""
        self.vocabulary_size = len(texts.pieces)
        """Number of ids, control tokens included."""
        self.max_token_bytes = max(len(piece or b"") for piece in texts.pieces)
        """Bytes of the longest token, so n characters of text are never fewer than n / max_token_bytes tokens."""

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Ids of text, none of them a control token. Raises ValueError for text that cannot be encoded."""

    def check_fits(self, *, vocabulary_size: int, image_token_id: int | None) -> None:
        """Raise ValueError unless a model with these many ids, and this image id if it sees, can use it."""
        if self.vocabulary_size > vocabulary_size:
            raise ValueError(f"the tokenizer has {self.vocabulary_size} ids, the model only {vocabulary_size}")
        got = self.image_ids.placeholder if self.image_ids else None
        if image_token_id is not None and got != image_token_id:
            raise ValueError(f"the tokenizer's image token is {got}, the model's is {image_token_id}")

    def token_bytes(self, token_id: int) -> bytes:
        """What one token writes; empty for control tokens, and for ids that only the model's padding has."""
        return self.texts.piece(token_id) or b""

    def is_control(self, token_id: int) -> bool:
        """Whether the token steers the model instead of writing text."""
        return token_id < self.vocabulary_size and self.texts.pieces[token_id] is None
