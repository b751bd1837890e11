"""The model's tokenizer: text to ids, ids to bytes, and which ids steer the model.

Knows Mistral tokenizer files (tekken.json, or SentencePiece models where that package is installed) through
mistral-common. Does not know chats (see `decoder_service.chat_template`) or UTF-8 split over tokens (see
`decoder_service.detokenizer`). Ids of control tokens come from the file, never from constants, and text never
becomes one of them, whatever it says.
"""

import re
from pathlib import Path

from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.base import SpecialTokens, Tokenized, TokenizerVersion
from mistral_common.tokens.tokenizers.base import Tokenizer as TextTokenizer
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from decoder_service.image_layout import ImageTokenIds

ChatTokenizer = MistralTokenizer[UserMessage, AssistantMessage, ToolMessage, SystemMessage, Tokenized]
"""What mistral-common loads: a tokenizer for texts, and around it the layout of chats."""

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class Tokenizer:
    """One loaded tokenizer. Safe to use from several threads."""

    def __init__(self, mistral: ChatTokenizer) -> None:
        """Take over a tokenizer that mistral-common has loaded."""
        self.mistral = mistral
        self._text: TextTokenizer = mistral.instruct_tokenizer.tokenizer
        self._control_ids = frozenset(self._text.special_ids)
        self._token_bytes = [_token_bytes(self._text, token_id) for token_id in range(self._text.n_words)]
        self.bos_id: int = self._text.bos_id
        self.eos_id: int = self._text.eos_id
        self.vocabulary_size: int = self._text.n_words
        """Number of ids, control tokens included."""
        self.image_ids: ImageTokenIds | None = _image_ids(self._text)
        """None where the tokenizer has no tokens for images."""
        self.max_token_bytes = max(map(len, self._token_bytes))
        """Bytes of the longest token, so n characters of text are never fewer than n / max_token_bytes tokens."""

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Load a tokenizer file; its name tells its kind, as mistral-common has it. Raises ValueError."""
        try:
            return cls(MistralTokenizer.from_file(path, mode=ValidationMode.serving))
        except ImportError as error:
            raise ValueError(f"{path.name} needs a package that is not installed: sentencepiece") from error
        except Exception as error:  # mistral-common answers broken files with whatever their parts raise.
            raise ValueError(f"{path.name} is not a tokenizer file that mistral-common reads") from error

    def check_fits(self, *, vocabulary_size: int, image_token_id: int | None) -> None:
        """Raise ValueError unless a model with these many ids, and this image id if it sees, can use it."""
        if self.vocabulary_size > vocabulary_size:
            raise ValueError(f"the tokenizer has {self.vocabulary_size} ids, the model only {vocabulary_size}")
        got = self.image_ids.placeholder if self.image_ids else None
        if image_token_id is not None and got != image_token_id:
            raise ValueError(f"the tokenizer's image token is {got}, the model's is {image_token_id}")

    def encode_text(self, text: str) -> list[int]:
        """Ids of text, none of them a control token. Raises ValueError for text that cannot be split."""
        return self._text.encode(text, bos=False, eos=False)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token writes; empty for control tokens, and for ids that only the model's padding has."""
        return self._token_bytes[token_id] if token_id < self.vocabulary_size else b""

    def is_control(self, token_id: int) -> bool:
        """Whether the token steers the model instead of writing text."""
        return token_id in self._control_ids


def _token_bytes(text: TextTokenizer, token_id: int) -> bytes:
    if text.is_special(token_id) or token_id == text.unk_id:
        return b""
    if isinstance(text, Tekkenizer):
        return text.id_to_byte_piece(token_id)
    piece = text.id_to_piece(token_id)
    if byte := _BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(byte[1])
    return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _image_ids(text: TextTokenizer) -> ImageTokenIds | None:
    # Before version 3 there is no layout for images, and unknown names may map to any id.
    names = (SpecialTokens.img.value, SpecialTokens.img_break.value, SpecialTokens.img_end.value)
    if text.version < TokenizerVersion.v3 or not all(map(text.is_special, names)):
        return None
    return ImageTokenIds(*map(text.get_special_token, names))


def find_tokenizer_file(directory: Path) -> Path:
    """The tokenizer file of a checkpoint directory. Raises ValueError where there is none."""
    for pattern in ("tekken*.json", "tokenizer.model*", "*.model.v*"):
        if found := sorted(directory.glob(pattern)):
            return found[-1]
    raise ValueError(f"{directory.name} holds no Mistral tokenizer file (tekken.json or tokenizer.model*)")
