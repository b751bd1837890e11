"""Tokenizers from Mistral's own files: tekken.json, and SentencePiece models of versions 1 to 7.

Knows mistral-common. Does not know other files (see `decoder_service.prompt.hf_tokenizer`) or chats
(see `decoder_service.prompt.mistral_chat`).
"""

import re
from pathlib import Path

from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.base import SpecialTokens, TokenizerVersion
from mistral_common.tokens.tokenizers.base import Tokenizer as LibraryTokenizer
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from decoder_service.prompt.image_layout import ImageTokenIds
from decoder_service.prompt.mistral_chat import ChatTokenizer, MistralChatTemplate
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.text.detokenizer import TokenTexts

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""
_UNKNOWN = " \N{DOUBLE QUESTION MARK} "
"""What SentencePiece writes for its unknown token."""


class MistralFileTokenizer(Tokenizer):
    """A tokenizer that mistral-common has loaded."""

    def __init__(self, mistral: ChatTokenizer) -> None:
        """Take over mistral-common's object."""
        self._library: LibraryTokenizer = mistral.instruct_tokenizer.tokenizer
        image_ids = _image_ids(self._library)
        super().__init__(
            texts=_tekken_texts(self._library)
            if isinstance(self._library, Tekkenizer)
            else _piece_texts(self._library),
            bos_id=self._library.bos_id,
            eos_id=self._library.eos_id,
            image_ids=image_ids,
            chat_template=MistralChatTemplate(mistral, image_ids),
        )

    @classmethod
    def from_file(cls, path: Path) -> "MistralFileTokenizer":
        """Load a tokenizer file; its name tells its kind and version, as mistral-common has it. Raises ValueError."""
        try:
            mistral = MistralTokenizer.from_file(path, mode=ValidationMode.serving)
            nameless = path.suffix == ".model" and mistral.instruct_tokenizer.tokenizer.is_special("[INST]")
        except Exception as error:  # mistral-common answers broken files with whatever their parts raise.
            raise ValueError(f"{path.name} is not a tokenizer file that mistral-common reads") from error
        if nameless:
            # mistral-common would take it for version 1, and write [INST] as text.
            raise ValueError(f"{path.name} is newer than version 1: name it {path.name}.v2, .v3, .v7 or .v7m1")
        return cls(mistral)

    def encode_text(self, text: str) -> list[int]:
        """Ids of text, none of them a control token. Raises ValueError for text that cannot be encoded."""
        try:
            return self._library.encode(text, bos=False, eos=False)
        except RuntimeError as error:  # SentencePiece's answer to lone surrogates.
            raise ValueError("the text is not valid Unicode") from error


def _tekken_texts(library: Tekkenizer) -> TokenTexts:
    return TokenTexts(
        pieces=[
            None if library.is_special(token_id) else library.id_to_byte_piece(token_id)
            for token_id in range(library.n_words)
        ]
    )


def _piece_texts(library: LibraryTokenizer) -> TokenTexts:
    """As SentencePiece decodes: the space before the first word is not written, unless it is a byte's."""
    pieces: list[bytes | None] = []
    first_pieces = {}
    for token_id in range(library.n_words):
        piece = library.id_to_piece(token_id)
        if library.is_special(token_id):
            pieces.append(None)
        elif token_id == library.unk_id:
            pieces.append(_UNKNOWN.encode())
        elif byte := _BYTE_PIECE.fullmatch(piece):
            pieces.append(bytes.fromhex(byte[1]))
        else:
            pieces.append(piece.replace(_SPACE, " ").encode())
            if piece.startswith(_SPACE):
                first_pieces[token_id] = piece[1:].replace(_SPACE, " ").encode()
    return TokenTexts(pieces=pieces, first_pieces=first_pieces, replaces_each_byte=True)


def _image_ids(library: LibraryTokenizer) -> ImageTokenIds | None:
    # Before version 3 there is no layout for images, and unknown names may map to any id.
    names = (SpecialTokens.img.value, SpecialTokens.img_break.value, SpecialTokens.img_end.value)
    if library.version < TokenizerVersion.v3 or not all(map(library.is_special, names)):
        return None
    return ImageTokenIds(*map(library.get_special_token, names))
