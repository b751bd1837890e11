"""Random pictures and prompts that every engine of the vision cases draws for itself, equally.

Knows numpy and the layout of a picture in a prompt. Runs in the peers' environments too.
"""

import numpy as np
from numpy.typing import NDArray

PATCH = 16
IMAGE, BREAK, END = 10, 12, 13
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def random_pixels(sizes: list[list[int]], seed: int) -> list[NDArray[np.uint8]]:
    """Pixels [height, width, 3] for sizes (width, height) in whole patches."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]


def prompt(width: int, height: int, *, num_text_tokens: int, vocab_size: int, seed: int) -> list[int]:
    """Token ids of one picture of so many pixels and random text behind it."""
    columns, rows = width // PATCH, height // PATCH
    picture = ([IMAGE] * columns + [BREAK]) * rows
    picture[-1] = END
    text = np.random.default_rng(seed).integers(100, vocab_size, num_text_tokens)
    return [1, *picture, *map(int, text)]
