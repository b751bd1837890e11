"""Tokenizers that several tests share; loading the large one takes a second."""

from importlib.resources import files
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from decoder_service.tokenizer import ChatTokenizer, Tokenizer


@pytest.fixture(scope="session")
def tekken_path() -> Path:
    """Pixtral 12B's own tokenizer, which mistral-common ships."""
    return Path(str(files("mistral_common") / "data" / "tekken_240911.json"))


@pytest.fixture(scope="session")
def demo_tekken() -> Path:
    """The small tokenizer of the demo model."""
    return Path(__file__).parents[2] / "models" / "demo" / "tekken.json"


@pytest.fixture(scope="session")
def tekken(tekken_path: Path) -> Tokenizer:
    return Tokenizer.from_file(tekken_path)


@pytest.fixture(scope="session")
def mistral_common(tekken_path: Path) -> ChatTokenizer:
    """The oracle: the same file as mistral-common loads it, with its own image encoder."""
    return MistralTokenizer.from_file(tekken_path)
