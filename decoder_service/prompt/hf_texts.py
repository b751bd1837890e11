"""What the tokens of a tokenizer.json write, by the decoder that the file names.

Knows the two decoders that Mistral models have: bytes in disguise (tekken), and words with bytes for what is in
no word (SentencePiece). Does not know files.
"""

import re
from collections.abc import Sequence
from typing import Any

from decoder_service.text.detokenizer import TokenTexts

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_SPACES = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
_WORDS = [_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]
_FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def token_texts(tokens: Sequence[str | None], decoder: dict[str, Any]) -> TokenTexts:
    """What tokens write; None for control tokens. Raises ValueError for a decoder that we do not know.

    The library takes control tokens out before it decodes, so they do not end a character. Broken characters:
    as the library for bytes in disguise. For words it replaces each byte of a whole run of bytes as soon as one
    is wrong, which nobody who streams can know; here, as in SentencePiece, the good characters of a run stay.
    """
    if decoder.get("type") == "ByteLevel":
        return TokenTexts(pieces=[_byte_level(token) for token in tokens], control_ends_character=False)
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else None
    if steps not in (_WORDS, [*_WORDS, _FIRST_SPACE]):
        raise ValueError("tokenizer.json names a decoder that no Mistral model has")
    pieces = [_word(token) for token in tokens]
    strips = steps[-1] == _FIRST_SPACE
    return TokenTexts(
        pieces=pieces,
        first_pieces={
            token_id: piece[1:] for token_id, piece in enumerate(pieces) if strips and piece and piece[:1] == b" "
        },
        control_ends_character=False,
        replaces_each_byte=True,
    )


def _byte_level(token: str | None) -> bytes | None:
    if token is None:
        return None
    try:
        return bytes(map(_BYTES.__getitem__, token))
    except KeyError:
        return token.encode()


def _word(token: str | None) -> bytes | None:
    if token is None:
        return None
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace(_SPACE, " ").encode()


def _disguises() -> dict[str, int]:
    """Bytes by the characters that stand for them: themselves where printable, else those from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _disguises()
