"""Drawings of numbers and of coloured shapes, and what is on each of them.

Knows ink and places. Does not know questions (see `tasks`) or patches (see `batches`). Everything follows
from the random generator that the caller passes in.
"""

import math
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (40, 150, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "purple": (140, 50, 180),
    "orange": (245, 130, 20),
}
NUMBER_COLOURS = COLOURS | {"black": (10, 10, 10), "white": (245, 245, 245)}
SHAPES = ("circle", "square", "triangle", "star")
MAX_DIGITS = 5
MAX_SHAPES = 5

_SMALLEST_FONT = 20  # digits about 14 pixels high
_LARGEST_FONT = 64
_SMALLEST_CELL = 26
_LARGEST_RADIUS = 30.0
_SUPERSAMPLING = 3


class Size(NamedTuple):
    """Pixels of a picture."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Mark:
    """One digit or shape."""

    label: str
    """A digit ("7") or a colour and a shape ("red circle")."""
    x: float
    y: float
    reach: float
    """Half of its larger side, in pixels."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and its marks in reading order."""

    image: Image.Image
    marks: tuple[Mark, ...]
    colour: str | None
    """Colour of the number; `None` on a picture of shapes."""

    @property
    def is_number(self) -> bool:
        """Whether the picture shows a number, not shapes."""
        return self.colour is not None

    @property
    def number(self) -> str:
        """The digits of the number."""
        return "".join(mark.label for mark in self.marks)

    @property
    def names(self) -> tuple[str, ...]:
        """Labels in reading order."""
        return tuple(mark.label for mark in self.marks)


def draw_number(size: Size, rng: Random, most_digits: int = MAX_DIGITS, *, hard: bool = False) -> Picture:
    """A number of 1 to `most_digits` digits (fewer where they would not fit) in one colour.

    A hard one leans to many and small digits, within the same limits.
    """
    fitting = int(0.94 * size.width / (0.58 * _SMALLEST_FONT))
    digits = max(rng.randint(1, max(1, min(most_digits, fitting))) for _ in range(2 if hard else 1))
    text = str(rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))
    largest = min(0.94 * size.width / (0.58 * digits), 0.9 * size.height / 0.72, _LARGEST_FONT)
    font = _font(min(rng.randint(_SMALLEST_FONT, max(_SMALLEST_FONT, int(largest))) for _ in range(3 if hard else 1)))
    left, top, right, bottom = font.getbbox(text)
    x = rng.uniform(1, max(1.0, size.width - (right - left) - 1)) - left
    y = rng.uniform(1, max(1.0, size.height - (bottom - top) - 1)) - top
    name = rng.choice(tuple(NUMBER_COLOURS))
    ink = _jittered(NUMBER_COLOURS[name], rng)
    image = _background(size, [ink], rng)
    ImageDraw.Draw(image).text((x, y), text, font=font, fill=ink)
    ends = [font.getlength(text[:count]) for count in range(digits + 1)]
    middle, reach = y + (top + bottom) / 2, (bottom - top) / 2
    marks = tuple(
        Mark(digit, x + (start + end) / 2, middle, reach)
        for digit, start, end in zip(text, ends[:-1], ends[1:], strict=True)
    )
    return Picture(_with_noise(image, rng), marks, name)


def draw_shapes(size: Size, rng: Random, most_shapes: int = MAX_SHAPES) -> Picture:
    """1 to `most_shapes` shapes (fewer where they would not fit), apart from each other, in clear rows."""
    most_rows, most_columns = (
        max(1, min(3, size.height // _SMALLEST_CELL)),
        max(1, min(5, size.width // _SMALLEST_CELL)),
    )
    count = rng.randint(1, min(most_shapes, most_rows * most_columns))
    layouts = [(rows, columns) for rows in range(1, most_rows + 1) for columns in range(1, most_columns + 1)]
    rows, columns = rng.choice([layout for layout in layouts if layout[0] * layout[1] >= count])
    cells = sorted(rng.sample(range(rows * columns), count))
    cell = (size.width / columns, size.height / rows)
    names = [(rng.choice(tuple(COLOURS)), rng.choice(SHAPES)) for _ in cells]
    inks = [_jittered(COLOURS[colour], rng) for colour, _ in names]
    image = _background(size, inks, rng).resize(
        (size.width * _SUPERSAMPLING, size.height * _SUPERSAMPLING), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(image)
    marks = []
    for index, (colour, shape), ink in zip(cells, names, inks, strict=True):
        x, y, radius = _place(index // columns, index % columns, cell, rng)
        _draw_shape(draw, shape, (x, y, radius), ink)
        marks.append(Mark(f"{colour} {shape}", x, y, radius))
    return Picture(_with_noise(image.reduce(_SUPERSAMPLING), rng), tuple(marks), None)


def _place(row: int, column: int, cell: tuple[float, float], rng: Random) -> tuple[float, float, float]:
    """Centre and radius within a cell: free to the sides, nearly level with the row."""
    width, height = cell
    largest = min(min(width, height) / 2 - 1.5, _LARGEST_RADIUS)
    radius = rng.uniform(max(9.0, 0.6 * largest), max(9.0, largest))
    sideways = max(0.0, width / 2 - radius - 1.5)
    level = max(0.0, min(height / 2 - radius - 1.5, 0.15 * height))
    return (
        (column + 0.5) * width + rng.uniform(-sideways, sideways),
        (row + 0.5) * height + rng.uniform(-level, level),
        radius,
    )


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, place: tuple[float, float, float], ink: tuple[int, int, int]
) -> None:
    x, y, radius = (_SUPERSAMPLING * value for value in place)
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    elif shape == "square":
        side = 0.88 * radius
        draw.rectangle((x - side, y - side, x + side, y + side), fill=ink)
    elif shape == "triangle":
        draw.polygon([(x, y - radius), (x - radius, y + 0.85 * radius), (x + radius, y + 0.85 * radius)], fill=ink)
    else:
        tips = [(radius if tip % 2 == 0 else 0.42 * radius, math.pi * tip / 5) for tip in range(10)]
        draw.polygon([(x + far * math.sin(turn), y - far * math.cos(turn)) for far, turn in tips], fill=ink)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType")
    return font


def _jittered(colour: tuple[int, int, int], rng: Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-12, 12))) for value in colour)
    return red, green, blue


def _background(size: Size, inks: list[tuple[int, int, int]], rng: Random) -> Image.Image:
    """A plain picture on which every ink stands out."""
    for _ in range(20):
        grey = rng.choice((rng.randint(190, 255), 255, rng.randint(0, 60), rng.randint(0, 255)))
        paper = _jittered((grey, grey, grey), rng)
        if all(abs(_luminance(ink) - _luminance(paper)) >= 45 for ink in inks):
            break
    else:
        paper = (255, 255, 255) if max(map(_luminance, inks)) < 200 else (0, 0, 0)
    return Image.new("RGB", size, paper)


def _luminance(colour: tuple[int, int, int]) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _with_noise(image: Image.Image, rng: Random) -> Image.Image:
    """The image, in a third of the cases with a little grain."""
    if rng.random() > 0.33:
        return image
    grain = np.random.default_rng(rng.getrandbits(32)).integers(-8, 9, (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.int16) + grain, 0, 255).astype(np.uint8))
