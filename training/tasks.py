"""The questions that the demo model answers, and their right answers.

Knows wording, what may be asked of which pictures, and the sizes of pictures. Does not know tokens or
models. `sample` gives one question of one task; training asks several about the same pictures.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from training.pictures import MAX_DIGITS, MAX_SHAPES, Picture, Size, draw_number, draw_shapes

Task = Literal["number", "count", "shapes", "which"]
TASKS: tuple[Task, ...] = ("number", "count", "shapes", "which")
PATCH = 16
LONGEST_EDGE = 160
_SHORTEST_EDGE = 28
_MOST_NAMED = 4

QUESTIONS: dict[str, tuple[str, ...]] = {
    "number": (
        "What number is shown?",
        "Read the number.",
        "Which number do you see?",
        "What is the number in the picture?",
        "What number is this?",
        "What does it say?",
    ),
    "count": (
        "How many shapes are there?",
        "Count the shapes.",
        "How many shapes do you see?",
        "How many shapes are in the picture?",
    ),
    "shapes": (
        "Name the shapes and their colours.",
        "Name the shapes and colours in reading order.",
        "Which shapes do you see?",
        "List the shapes with their colors.",
        "What shapes are in the picture?",
    ),
    "which": (
        "Which image shows {}?",
        "Which picture shows {}?",
        "In which image is {}?",
        "Which of the two images has {}?",
        "Where is {}, in the first or the second image?",
    ),
    "digits": ("How many digits are shown?", "How many digits does the number have?"),
    "colour": ("What colour is {}?", "What color is {}?", "Which colour does {} have?"),
    "where": ("What is {}, and in which image is it?", "In which image is {}, and what is it?"),
    "content": ("What does the {} image show?", "What is in the {} picture?", "What do you see in the {} image?"),
}
_ORDINALS = ("first", "second")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    task: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """Pictures and a conversation about them; the pictures stand in the first question's message."""

    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    pictures_first: bool
    """Whether the pictures come before the first question's text; a single one always does."""

    @property
    def png_images(self) -> list[bytes]:
        """The pictures as PNG files."""
        return [_png(picture) for picture in self.pictures]


def sample(task: Task, rng: Random) -> Example:
    """One question of a task about fresh pictures of random sizes."""
    while True:
        sizes = [random_size(random_grid(rng), rng) for _ in range(2 if task == "which" else 1)]
        pictures = draw_pictures(task, sizes, rng)
        turns = [turn for turn in askable(pictures, rng) if turn.task == task]
        if turns:
            return Example(pictures, (rng.choice(turns),), pictures_first=True)


def random_grid(rng: Random, most_patches: int = 40) -> tuple[int, int]:
    """Rows and columns of patches of a picture; one in sixteen is large."""
    limit = 100 if rng.random() < 1 / 16 else most_patches
    while True:
        rows, columns = rng.randint(2, 10), rng.randint(2, 10)
        if rows * columns <= limit and rows <= 3 * columns:
            return rows, columns


def random_size(grid: tuple[int, int], rng: Random) -> Size:
    """A size in pixels whose patch grid is `grid`; half of them need no resizing."""
    if rng.random() < 0.5:
        return Size(width=PATCH * grid[1], height=PATCH * grid[0])
    height, width = (PATCH * side - rng.randint(0, min(PATCH - 1, PATCH * side - _SHORTEST_EDGE)) for side in grid)
    return Size(width=width, height=height)


def draw_pictures(
    task: str, sizes: list[Size], rng: Random, level: float = 1.0, *, hard: bool = False
) -> tuple[Picture, ...]:
    """Pictures on which the task can be asked, one per size; `level` 0 is easiest, 1 the full range."""
    kind = task if task != "which" else rng.choice(("number", "shapes"))
    mixed = task == "which" and rng.random() < 0.3 - 0.2 * level
    pictures = []
    for place, size in enumerate(sizes):
        if (kind == "number") != (mixed and place == 1):
            pictures.append(draw_number(size, rng, 1 + round(level * (MAX_DIGITS - 1)), hard=hard))
        else:
            pictures.append(draw_shapes(size, rng, 1 + round(level * (MAX_SHAPES - 1))))
    return tuple(pictures)


def askable(pictures: tuple[Picture, ...], rng: Random) -> list[Turn]:
    """One turn of every kind that has exactly one right answer on these pictures."""
    facts = _facts_of_one(pictures[0], rng) if len(pictures) == 1 else _facts_of_two(pictures, rng)
    return [Turn(task, rng.choice(QUESTIONS[task]).format(topic), answer) for task, topic, answer in facts]


def texts(rng: Random, count: int) -> Iterator[str]:
    """Questions and answers as they occur, for the tokenizer to learn from."""
    for index in range(count):
        for turn in sample(TASKS[index % len(TASKS)], rng).turns:
            yield turn.question
            yield turn.answer
    for task, wordings in QUESTIONS.items():
        for wording in wordings:
            yield wording.format("first" if task == "content" else "the number")


def _facts_of_one(picture: Picture, rng: Random) -> Iterator[tuple[str, str, str]]:
    if picture.is_number:
        yield "number", "", picture.number
        yield "digits", "", str(len(picture.marks))
        yield "colour", "the number", str(picture.colour)
        return
    yield "count", "", str(len(picture.marks))
    if len(picture.marks) <= _MOST_NAMED:
        yield "shapes", "", ", ".join(picture.names)
    colour, shape = rng.choice(picture.names).split()
    if sum(name.endswith(shape) for name in picture.names) == 1:
        yield "colour", f"the {shape}", colour


def _facts_of_two(pictures: tuple[Picture, ...], rng: Random) -> Iterator[tuple[str, str, str]]:
    topics = [_topics(picture) for picture in pictures]
    for place in rng.sample((0, 1), 2):
        distinct = [topic for topic in topics[place] if topic not in topics[1 - place]]
        if distinct:
            yield "which", rng.choice(distinct), _ORDINALS[place]
    for place in (0, 1):
        if known := _known_by(pictures[place], topics[1 - place], rng):
            yield "where", known[0], f"{known[1]}, {_ORDINALS[place]}"
    place = rng.randrange(2)
    picture = pictures[place]
    if picture.is_number or len(picture.marks) <= _MOST_NAMED:
        yield "content", _ORDINALS[place], picture.number if picture.is_number else ", ".join(picture.names)


def _topics(picture: Picture) -> list[str]:
    """What a picture can be told by."""
    if picture.is_number:
        length = len(picture.marks)
        return [
            "a number",
            f"a number with {length} digit{'s' if length > 1 else ''}",
            *(f"the digit {digit}" for digit in dict.fromkeys(picture.number)),
            *4 * [f"the number {picture.number}"],
        ]
    colours, shapes = zip(*(name.split() for name in picture.names), strict=True)
    things = dict.fromkeys((*picture.names, *shapes, *(f"{colour} shape" for colour in colours), "shape"))
    return [f"a {thing}" if thing[0] != "o" else f"an {thing}" for thing in things]


def _known_by(picture: Picture, elsewhere: list[str], rng: Random) -> tuple[str, str] | None:
    """Something about the picture that can be asked without naming its place, and the answer."""
    if picture.is_number:
        if "a number" not in elsewhere:
            return "the number", picture.number
        length = _topics(picture)[1]
        return (length.replace("a ", "the ", 1), picture.number) if length not in elsewhere else None
    colour, shape = rng.choice(picture.names).split()
    unique = sum(name.endswith(shape) for name in picture.names) == 1 and f"a {shape}" not in elsewhere
    return (f"the colour of the {shape}", colour) if unique else None


def _png(picture: Picture) -> bytes:
    picture.image.save(file := io.BytesIO(), format="PNG")
    return file.getvalue()
