"""Tokenizers that several tests share; loading the large one takes a second."""

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import settings
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from decoder_service.prompt.mistral_chat import ChatTokenizer
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.prompt.tokenizer_files import load_tokenizer
from tests.decoder_service.hf_checkpoints import write_bytes_tokenizer, write_words_tokenizer

# Files are read and templates compiled in the first example of a property, whose time then says nothing.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

MISTRAL_FILES = [
    "tokenizer.model.v1",
    "mistral_instruct_tokenizer_240216.model.v2",
    "mistral_instruct_tokenizer_240323.model.v3",
    "mistral_instruct_tokenizer_241114.model.v7",
    "mistral_instruct_tokenizer_241114.model.v7m1",
    "tekken_240718.json",
    "tekken_240911.json",
]
LoadMistral = Callable[[str], tuple[Tokenizer, ChatTokenizer]]


@pytest.fixture(scope="session")
def data() -> Path:
    """Where mistral-common keeps the tokenizers that it ships."""
    return Path(str(files("mistral_common") / "data"))


@pytest.fixture(scope="session")
def demo_tekken() -> Path:
    """The small tokenizer of the demo model."""
    return Path(__file__).parents[2] / "models" / "demo" / "tekken.json"


@pytest.fixture(scope="session")
def load_mistral(data: Path) -> LoadMistral:
    """One of the files, as we load it and as mistral-common does, with its own image encoder."""
    return cache(lambda name: (load_tokenizer(data / name), MistralTokenizer.from_file(data / name)))


@pytest.fixture(scope="session", params=MISTRAL_FILES)
def both(request: pytest.FixtureRequest, load_mistral: LoadMistral) -> tuple[Tokenizer, ChatTokenizer]:
    """Each of the files in turn, as we load it and as mistral-common does."""
    return load_mistral(request.param)


@pytest.fixture(scope="session")
def tekken(load_mistral: LoadMistral) -> Tokenizer:
    return load_mistral("tekken_240911.json")[0]


@pytest.fixture(scope="session")
def mistral_common(load_mistral: LoadMistral) -> ChatTokenizer:
    """The oracle."""
    return load_mistral("tekken_240911.json")[1]


@pytest.fixture(scope="session")
def hf_bytes(tmp_path_factory: pytest.TempPathFactory, demo_tekken: Path) -> Path:
    """The demo's tokenizer as a tokenizer.json, with a chat template that reads parts."""
    return write_bytes_tokenizer(tmp_path_factory.mktemp("bytes"), demo_tekken)


@pytest.fixture(scope="session")
def hf_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of words and bytes, with a chat template that reads text alone."""
    return write_words_tokenizer(tmp_path_factory.mktemp("words"), old=False)


@pytest.fixture(scope="session", params=["bytes", "words", "old words"])
def hf(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hf_bytes: Path, hf_words: Path
) -> tuple[Tokenizer, PreTrainedTokenizerBase]:
    """Each kind of tokenizer.json in turn, as we load it and as transformers does."""
    if request.param == "old words":
        path = write_words_tokenizer(tmp_path_factory.mktemp("old"), old=True)
    else:
        path = hf_bytes if request.param == "bytes" else hf_words
    return load_tokenizer(path), AutoTokenizer.from_pretrained(path.parent)
