"""Tokens back to text, whole characters only.

Knows bytes and UTF-8. Does not know stop texts (see `decoder_service.text.stop_checker`). One token may end inside
a character, so bytes wait until theirs is complete; bytes that can never be a character become U+FFFD. All
pieces together equal the decoding of all tokens at once, wherever they are cut. Libraries differ in three
corners, so a vocabulary says which of their ways is its own.
"""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTexts:
    """What the tokens of a vocabulary write."""

    pieces: Sequence[bytes | None]
    """Bytes of each token, by id; None for control tokens, which write nothing."""
    first_pieces: Mapping[int, bytes] = field(default_factory=dict)
    """Bytes of tokens that write something else where a text begins: without the space before its first word."""
    control_ends_character: bool = True
    """Whether a control token ends a character that is not complete, or stands inside it unseen."""
    replaces_each_byte: bool = False
    """Whether every byte of a broken character becomes U+FFFD, or all of them become one."""

    def piece(self, token_id: int, *, first: bool = False) -> bytes | None:
        """Bytes of a token; None for control tokens and for ids that only the model's padding has."""
        if token_id >= len(self.pieces):
            return None
        piece = self.pieces[token_id]
        return self.first_pieces.get(token_id, piece) if first else piece


class Detokenizer:
    """The text of one completion as it grows."""

    def __init__(self, texts: TokenTexts, *, first: bool = True) -> None:
        """Start a text; `first` is False where it goes on behind other text."""
        self._texts = texts
        self._first = first
        self._errors = "surrogateescape" if texts.replaces_each_byte else "replace"
        self._held = b""

    def feed(self, token_ids: Iterable[int]) -> str:
        """Add tokens; returns the characters that they complete, possibly none."""
        return "".join(map(self.add, token_ids))

    def flush(self) -> str:
        """End the text; returns what an incomplete last character becomes."""
        return self._decode(b"", final=True)

    def add(self, token_id: int) -> str:
        """Add one token; returns as `feed` does."""
        piece = self._texts.piece(token_id, first=self._first)
        if piece is None:
            return self.flush() if self._texts.control_ends_character else ""
        self._first = False
        return self._decode(piece)

    def _decode(self, piece: bytes, *, final: bool = False) -> str:
        # What the standard library's incremental decoder does, without its two calls for each piece.
        data = self._held + piece
        text, num_read = codecs.utf_8_decode(data, self._errors, final)
        self._held = data[num_read:]
        # The decoder has told the bytes that it could not read as lone surrogates, which no text can hold.
        return _ESCAPED_BYTE.sub("\ufffd", text) if self._texts.replaces_each_byte else text
