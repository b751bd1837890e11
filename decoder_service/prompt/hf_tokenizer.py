"""Tokenizers from Hugging Face's tokenizer.json, for checkpoints without Mistral's own files.

Knows which tokens begin and end a text and lay out an image. Does not know how the file is read
(see `decoder_service.prompt.hf_vocabulary`) or chats (see `decoder_service.prompt.hf_chat`).
"""

from collections.abc import Mapping
from pathlib import Path

from decoder_service.prompt.hf_chat import HuggingFaceChatTemplate
from decoder_service.prompt.hf_files import read_chat_template, read_special_names
from decoder_service.prompt.hf_texts import token_texts
from decoder_service.prompt.hf_vocabulary import Vocabulary
from decoder_service.prompt.image_layout import ImageTokenIds
from decoder_service.prompt.tokenizer import Tokenizer

_IMAGE_NAMES = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json with the files beside it."""

    def __init__(self, vocabulary: Vocabulary, *, names: Mapping[str, str], template: str | None) -> None:
        """Take the vocabulary, the names of special tokens, and the chat template's source. Raises ValueError."""
        self._vocabulary = vocabulary
        image_ids = _image_ids(vocabulary, names)
        super().__init__(
            texts=token_texts(vocabulary.tokens, vocabulary.decoder),
            bos_id=_named_id(vocabulary, names, "bos_token"),
            eos_id=_named_id(vocabulary, names, "eos_token"),
            image_ids=image_ids,
            chat_template=(
                None
                if template is None
                else HuggingFaceChatTemplate(template, vocabulary=vocabulary, names=names, image_ids=image_ids)
            ),
        )

    @classmethod
    def from_file(cls, path: Path) -> "HuggingFaceTokenizer":
        """Load a tokenizer.json and what its directory says about it. Raises ValueError."""
        names = read_special_names(path.parent)
        template = read_chat_template(path.parent)
        try:
            vocabulary = Vocabulary.from_file(path, control_names={*names.values(), *_IMAGE_NAMES.values()})
            return cls(vocabulary, names=names, template=template)
        except (AttributeError, KeyError, TypeError) as error:  # Parts of the file that are not what they should be.
            raise ValueError(f"{path.name} is not a tokenizer file") from error

    def encode_text(self, text: str) -> list[int]:
        """Ids of text, none of them a control token. Raises ValueError for text that cannot be encoded."""
        return self._vocabulary.encode(text)


def _named_id(vocabulary: Vocabulary, names: Mapping[str, str], name: str) -> int:
    token_id = vocabulary.control_ids.get(names.get(name, ""))
    if token_id is None:
        raise ValueError(f"the files beside tokenizer.json name no {name} that it has")
    return token_id


def _image_ids(vocabulary: Vocabulary, names: Mapping[str, str]) -> ImageTokenIds | None:
    ids = [vocabulary.control_ids.get(names.get(key, name)) for key, name in _IMAGE_NAMES.items()]
    known = [token_id for token_id in ids if token_id is not None]
    return ImageTokenIds(*known) if len(known) == len(ids) else None
