"""Shows pictures on a terminal.

Knows half blocks and 24-bit colours. Does not know what a picture is of.
"""

import os
from typing import TextIO

from PIL import Image

_RESET = "\x1b[0m"


def shows_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that says it has 24-bit colours."""
    return stream.isatty() and os.environ.get("COLORTERM", "").lower() in {"truecolor", "24bit"}


def half_blocks(picture: Image.Image, max_columns: int) -> list[str]:
    """A picture as lines of text: each character is two pixels, one above the other."""
    scale = min(1.0, max_columns / picture.width)
    size = (max(1, round(picture.width * scale)), max(2, round(picture.height * scale / 2) * 2))
    small = picture.convert("RGB").resize(size, Image.Resampling.BOX)
    pixels = small.tobytes()
    return [_line(pixels, width=size[0], row=row) for row in range(0, size[1], 2)]


def _line(pixels: bytes, *, width: int, row: int) -> str:
    cells = []
    for column in range(width):
        top, bottom = (3 * ((row + half) * width + column) for half in (0, 1))
        colours = (*pixels[top : top + 3], *pixels[bottom : bottom + 3])
        cells.append("\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*colours))
    return "".join(cells) + _RESET
