"""Tokenizers that several tests share; loading the large one takes a second."""

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from decoder_service.mistral_chat import ChatTokenizer
from decoder_service.tokenizer import Tokenizer
from decoder_service.tokenizer_files import load_tokenizer

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
def tekken_path(data: Path) -> Path:
    """Pixtral 12B's own tokenizer."""
    return data / "tekken_240911.json"


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
