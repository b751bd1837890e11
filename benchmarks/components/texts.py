"""Cost of text: prompts into tokens, tokens into text.

Knows the demo model's tokenizer and chat template, which come with the sources.
"""

import random
from collections.abc import Iterator

from benchmarks.checkpoints import PREPROCESSING, TOKENIZER
from benchmarks.components.timing import Measurement, scaled, seconds_per_call
from benchmarks.load.workload import random_picture
from common.image.header import ImageLimits
from decoder_service.prompt.prompt import PromptBuilder, PromptLimits
from decoder_service.prompt.prompt_spec import ChatMessage, ChatPrompt, PromptSpec, Role, TokenPrompt
from decoder_service.prompt.tokenizer_files import load_tokenizer
from decoder_service.text.detokenizer import Detokenizer

_LIMITS = PromptLimits(
    max_prompt_tokens=1 << 20, max_images=16, image=ImageLimits(max_bytes=20 << 20, max_pixels=50_000_000)
)
_WORDS = [
    "the",
    "red",
    "circle",
    "stands",
    "left",
    "of",
    "a",
    "blue",
    "square",
    "and",
    "above",
    "two",
    "green",
    "stars",
]


def measure_texts(seconds: float) -> Iterator[Measurement]:
    """Milliseconds of building prompts, and microseconds of a token's way to text."""
    tokenizer = load_tokenizer(TOKENIZER)
    builder = PromptBuilder(tokenizer, vocabulary_size=tokenizer.vocabulary_size, limits=_LIMITS)
    for at, prompt in _prompts().items():

        def build(prompt: PromptSpec = prompt) -> object:
            return builder.build(prompt, preprocessing=PREPROCESSING)

        value = scaled(seconds_per_call(build, seconds=seconds), 1e3)
        yield Measurement(component="prompt", at=at, value=value, unit="ms")
    ids = tokenizer.encode_text(" ".join(_WORDS * 20))

    def detokenise() -> None:
        detokenizer = Detokenizer(tokenizer.texts)
        for token_id in ids:
            detokenizer.feed([token_id])

    value = scaled(seconds_per_call(detokenise, seconds=seconds), 1e6 / len(ids))
    yield Measurement(component="detokenise", at="one token", value=value, unit="us")


def _prompts() -> dict[str, PromptSpec]:
    generator = random.Random(0)  # noqa: S311 - no secret
    picture = random_picture(1024, 1024, seed=0)

    def chat(words: int, pictures: int) -> ChatPrompt:
        text = " ".join(generator.choices(_WORDS, k=words))
        return ChatPrompt((ChatMessage(role=Role.USER, parts=(*[picture] * pictures, text)),))

    return {
        "chat of 50 words": chat(50, 0),
        "chat of 1,000 words": chat(1000, 0),
        "chat with one 1024 x 1024 picture": chat(50, 1),
        "chat with four 1024 x 1024 pictures": chat(50, 4),
        "2,000 token ids": TokenPrompt(tuple(generator.choices(range(100, 400), k=2000))),
    }
