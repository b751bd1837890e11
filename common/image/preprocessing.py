"""How a picture's size becomes a grid of patches, under either reference.

Knows sizes. Does not know pixels (see `vision_service.decoding.image`) or files (see `common.image.header`). Both
services use it: one lays out placeholders by it, the other resizes by it, so the two cannot disagree.
"""

import struct
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class PreprocessingMode(Enum):
    """The reference that resizing follows."""

    HF = "hf"
    """Hugging Face transformers: sizes rounded down, antialiased bicubic on 8-bit values."""
    MISTRAL = "mistral"
    """mistral-common: sizes rounded to nearest, bicubic without antialias on floats."""


class PatchGrid(NamedTuple):
    """Places of an image's patches."""

    height: int
    """Rows of patches."""
    width: int
    """Patches in a row."""

    @property
    def num_patches(self) -> int:
        """Patches in the grid, and so image feature rows and placeholder tokens."""
        return self.height * self.width

    @property
    def num_tokens(self) -> int:
        """Prompt tokens of the image: its placeholders, and after each row a break or, last, the end."""
        return self.height * (self.width + 1)

    def patches_before(self, token_offset: int) -> int:
        """Placeholders among the image's first `token_offset` tokens.

        For a grid two rows high and three wide (I = placeholder, B = break, E = end):

            token    I I I B I I I E
            offset   0 1 2 3 4 5 6 7 8
            before   0 1 2 3 3 4 5 6 6
        """
        rows, columns = divmod(token_offset, self.width + 1)
        return rows * self.width + min(columns, self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Everything that decides how many patches a picture gets and what pixels they hold."""

    mode: PreprocessingMode
    patch_size: int
    """Side of a square patch in pixels."""
    image_size: int
    """Longest side in pixels that a picture keeps."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def patch_grid(self, width: int, height: int) -> PatchGrid:
        """Grid for a picture of width x height pixels, after its orientation is applied.

        Sides never shrink below one patch, also where a reference raises (1 x 5000 pixels under
        transformers), so every picture has a grid. Pictures are never enlarged but to a whole patch.
        """
        ratio = max(width / self.image_size, height / self.image_size)
        if ratio > 1:
            # Python's round is half-to-even, as in mistral-common; transformers rounds down.
            shrink = round if self.mode is PreprocessingMode.MISTRAL else int
            width, height = max(shrink(width / ratio), 1), max(shrink(height / ratio), 1)
        return PatchGrid(height=(height - 1) // self.patch_size + 1, width=(width - 1) // self.patch_size + 1)

    def fingerprint(self) -> bytes:
        """Canonical bytes of these settings, for image identities and handshakes."""
        fields = (self.mode.value, self.patch_size, self.image_size, *map(_exact, (*self.mean, *self.std)))
        return "|".join(map(str, fields)).encode()


def _exact(value: float) -> str:
    # One service reads fp64 from a file, the other what fp32 on the wire left of it. Decimals would not do:
    # 0.4578275, a mean that Pixtral uses, rounds to different sixth places on either side.
    return struct.pack("<f", value).hex()
