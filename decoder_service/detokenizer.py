"""Tokens back to text, whole characters only.

Knows bytes and UTF-8. Does not know stop texts (see `decoder_service.stop_checker`). One token may end inside
a character, so bytes wait until theirs is complete; bytes that can never be a character become U+FFFD. All
pieces together equal the decoding of all bytes at once, wherever the tokens are cut.
"""

import codecs
from collections.abc import Callable, Iterable

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one completion as it grows."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        """Take the function that gives the bytes of a token."""
        self._token_bytes = token_bytes
        self._decoder = _Utf8Decoder(errors="replace")

    def feed(self, token_ids: Iterable[int]) -> str:
        """Add tokens; returns the characters that they complete, possibly none."""
        return self._decoder.decode(b"".join(map(self._token_bytes, token_ids)))

    def flush(self) -> str:
        """End the text; returns what an incomplete last character becomes."""
        return self._decoder.decode(b"", final=True)
