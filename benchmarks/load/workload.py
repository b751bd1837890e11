"""What the requests of a load ask: random tokens and random pictures, drawn from a seed.

Knows distributions. Does not know when requests are sent or where to. Every pixel of a picture is random, which is
the worst case for a JPEG file. Prompts are token ids, so that their lengths are exact.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

MAX_SHARED_IMAGES = 4
"""Different pictures among those that requests share."""


@dataclass(frozen=True, slots=True)
class Span:
    """Whole numbers from `low` to `high`, each as likely."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Span":
        """`N` or `LOW-HIGH`. Raises ValueError."""
        low, dash, high = text.partition("-")
        span = cls(int(low), int(high) if dash else int(low))
        if not 0 <= span.low <= span.high:
            raise ValueError(f"{text} is no span of numbers from 0 on")
        return span

    def draw(self, generator: random.Random) -> int:
        """One of them."""
        return generator.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class ImageSize:
    """A size of pictures and how often it comes."""

    width: int
    height: int
    weight: float

    @classmethod
    def parse(cls, text: str) -> "ImageSize":
        """`WIDTHxHEIGHT` or `WIDTHxHEIGHT:WEIGHT`. Raises ValueError."""
        size, _, weight = text.partition(":")
        width, _, height = size.partition("x")
        return cls(int(width), int(height), float(weight or 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadConfig:
    """Distributions of a load."""

    text_tokens: Span
    output_tokens: Span
    images: Span = Span(0, 0)
    image_sizes: tuple[ImageSize, ...] = (ImageSize(256, 256, 1.0),)
    shared_image_ratio: float = 0.0
    """Part of the pictures that are drawn from a few that come again."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPlan:
    """One request of a load."""

    text_token_ids: tuple[int, ...]
    images: tuple[bytes, ...]
    image_sizes: tuple[ImageSize, ...]
    output_tokens: int


def plan_requests(config: WorkloadConfig, count: int, *, token_ids: Sequence[int]) -> list[RequestPlan]:
    """So many requests whose text is drawn from `token_ids`; equal for equal arguments."""
    generator = random.Random(config.seed)  # noqa: S311 - no secret
    pictures = _Pictures(config, generator)
    plans = []
    for _ in range(count):
        chosen = [pictures.draw() for _ in range(config.images.draw(generator))]
        plans.append(
            RequestPlan(
                text_token_ids=tuple(generator.choices(token_ids, k=config.text_tokens.draw(generator))),
                images=tuple(file for file, _ in chosen),
                image_sizes=tuple(size for _, size in chosen),
                output_tokens=config.output_tokens.draw(generator),
            )
        )
    return plans


def random_picture(width: int, height: int, *, seed: int) -> bytes:
    """A JPEG file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


class _Pictures:
    def __init__(self, config: WorkloadConfig, generator: random.Random) -> None:
        self._config = config
        self._generator = generator
        self._shared: list[tuple[bytes, ImageSize]] = []

    def draw(self) -> tuple[bytes, ImageSize]:
        """The next picture: a new one, or one of the few that are shared."""
        if self._generator.random() >= self._config.shared_image_ratio:
            return self._new()
        if len(self._shared) < MAX_SHARED_IMAGES:
            self._shared.append(self._new())
            return self._shared[-1]
        return self._generator.choice(self._shared)

    def _new(self) -> tuple[bytes, ImageSize]:
        sizes = self._config.image_sizes
        size = self._generator.choices(sizes, weights=[each.weight for each in sizes])[0]
        return random_picture(size.width, size.height, seed=self._generator.getrandbits(32)), size
