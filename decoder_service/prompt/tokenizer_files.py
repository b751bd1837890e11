"""Finds a checkpoint's tokenizer file and loads it as what it is.

Knows names. Does not know contents.
"""

from pathlib import Path

from decoder_service.prompt.hf_tokenizer import HuggingFaceTokenizer
from decoder_service.prompt.mistral_tokenizer import MistralFileTokenizer
from decoder_service.prompt.tokenizer import Tokenizer

_HF_NAME = "tokenizer.json"
# Mistral's own files come first: mistral-common lays out chats exactly as the models were taught. A bare
# tokenizer.model comes last, as its name does not tell its version.
_PATTERNS = ("tekken*.json", "tokenizer.model.v*", "*.model.v*", _HF_NAME, "tokenizer.model")


def find_tokenizer_file(directory: Path) -> Path:
    """The tokenizer file of a checkpoint directory. Raises ValueError where there is none."""
    for pattern in _PATTERNS:
        if found := sorted(directory.glob(pattern)):
            return found[-1]
    raise ValueError(f"{directory.name} holds no tokenizer file (tekken.json, tokenizer.model* or tokenizer.json)")


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer file. Raises ValueError with one line that says what is wrong."""
    if not path.is_file():
        raise ValueError(f"{path} is not a tokenizer file: there is no such file")
    if path.name == _HF_NAME:
        return HuggingFaceTokenizer.from_file(path)
    return MistralFileTokenizer.from_file(path)


def load_fitting_tokenizer(path: Path, *, vocabulary_size: int, image_token_id: int | None) -> Tokenizer:
    """Load the tokenizer file of a model. Raises ValueError, which names the file where the two do not fit."""
    tokenizer = load_tokenizer(path)
    try:
        tokenizer.check_fits(vocabulary_size=vocabulary_size, image_token_id=image_token_id)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    return tokenizer
