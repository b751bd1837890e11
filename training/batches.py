"""Batches of tokens, patches and targets, as a pure function of a seed and a step.

Knows the chat layout, the curriculum and the padding. Does not know the model. All pictures in the same
place of a batch share one patch grid, so that no padding of patches is needed.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from numpy.typing import NDArray
from PIL import Image

from training.pictures import SHAPES, Picture
from training.tasks import PATCH, TASKS, Example, Turn, askable, draw_pictures, random_grid, random_size

BOS, EOS, BEGIN_INST, END_INST, IMG, PAD, IMG_BREAK, IMG_END = 1, 2, 3, 4, 10, 11, 12, 13
# What a patch shows, for the helping loss: nothing, one of ten digits, or one of the shapes.
MARK_CLASSES = 1 + 10 + len(SHAPES)
# Which mark in reading order it is: none, or the first to the fifth.
PLACE_CLASSES = 1 + 5
_PAD_MULTIPLE = 8
_TOKENS_PER_BATCH = 5120
_MOST_EXAMPLES = 96

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The pictures in one place (first, second) of every example."""

    grid: Grid
    pixels: NDArray[np.uint8]
    """[batch, patches, 3 * PATCH ** 2] in (channel, row, column) order."""
    marks: NDArray[np.int64]
    """[batch, patches, 2]: for the left and the right half of each patch, below MARK_CLASSES."""
    places: NDArray[np.int64]
    """[batch, patches, 2], below PLACE_CLASSES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples of one layout, padded on the right."""

    slots: list[Slot]
    tokens: NDArray[np.int64]
    """[batch, length]"""
    predictors: NDArray[np.int64]
    """[targets]: index into the flattened tokens of the row that predicts each target."""
    targets: NDArray[np.int64]
    """[targets]: answer tokens and ends of answers."""
    turn_of: NDArray[np.int64]
    """[targets]: which turn of the batch each belongs to."""
    turn_tasks: list[str]


class ChatLayout:
    """Writes conversations as mistral-common does (checked by `train`), from memoised pieces."""

    def __init__(self, tekken: Path) -> None:
        self._tekken = Tekkenizer.from_file(tekken)
        self._known: dict[str, list[int]] = {}

    def words(self, text: str) -> list[int]:
        """Tokens of plain text."""
        if text not in self._known:
            self._known[text] = self._tekken.encode(text, bos=False, eos=False)
        return self._known[text]

    def conversation(self, example: Example, grids: list[Grid]) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens, and for every turn where its answer starts and where it ends (after </s>)."""
        tokens, spans = [BOS], []
        images = [token for grid in grids for token in image_tokens(grid)]
        for turn in example.turns:
            words = self.words(turn.question)
            tokens += [BEGIN_INST, *(images + words if example.pictures_first else words + images), END_INST]
            images = []
            start = len(tokens)
            tokens += [*self.words(turn.answer), EOS]
            spans.append((start, len(tokens)))
        return tokens, spans


def image_tokens(grid: Grid) -> list[int]:
    """Placeholders of a picture: a break after each row, an end after the last."""
    return [*(([IMG] * grid[1] + [IMG_BREAK]) * grid[0])[:-1], IMG_END]


def patches_of(image: Image.Image) -> tuple[Grid, NDArray[np.uint8]]:
    """Grid and patches [patches, 3 * PATCH ** 2] of a picture no larger than the longest edge."""
    rows, columns = -(-image.height // PATCH), -(-image.width // PATCH)
    image = image.resize((columns * PATCH, rows * PATCH), Image.Resampling.BICUBIC)
    split = np.asarray(image).reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 4, 1, 3)
    return (rows, columns), np.ascontiguousarray(split).reshape(rows * columns, -1)


def training_batch(layout: ChatLayout, seed: int, step: int, ramp: int) -> Batch:
    """The batch of a step; pictures grow to their full difficulty over the first `ramp` steps."""
    rng = Random(f"train {seed} {step}")  # noqa: S311
    level = min(1.0, step / ramp)
    double = rng.random() < 0.15 + 0.5 * level
    if double:
        # Telling pictures apart comes after reading them, and never without easy ones: it is learnt from
        # one bit a question, and hard questions before easy ones teach nothing.
        level = min(1.0, max(0.0, (step / ramp - 1) / 2)) * (1.0 if rng.random() < 0.5 else rng.random())
    most_patches = round(9 + 21 * level) if double else 40
    grids = [random_grid(rng, most_patches) for _ in range(2 if double else 1)]
    single_turn = rng.random() < (0.15 if double else 0.35)
    length = sum(rows * (columns + 1) for rows, columns in grids) + (16 if single_turn else 80 if double else 44)
    examples = []
    for _ in range(min(_MOST_EXAMPLES, _TOKENS_PER_BATCH // length)):
        task = "which" if double else rng.choices(("number", "shapes"), (0.6, 0.4))[0]
        sizes = [random_size(grid, rng) for grid in grids]
        examples.append(_example(draw_pictures(task, sizes, rng, level, hard=rng.random() < 0.5), single_turn, rng))
    return assemble(layout, examples)


def _example(pictures: tuple[Picture, ...], single_turn: bool, rng: Random) -> Example:
    """A conversation; a single turn is mostly one of the tasks proper."""
    turns = askable(pictures, rng) or [Turn("content", "What does the first image show?", "")]
    if single_turn:
        main = [turn for turn in turns if turn.task in TASKS]
        turns = [rng.choice(main if main and rng.random() < 0.85 else turns)]
    else:
        if len(pictures) == 2:
            more = [turn for _ in range(2) for turn in askable(pictures, rng)]
            turns += [turn for turn in more if turn.task == "which"]
        rng.shuffle(turns)
        turns = turns[: 2 + 2 * len(pictures)]
    return Example(pictures, tuple(turns), len(pictures) == 1 or rng.random() < 0.85)


def assemble(layout: ChatLayout, examples: list[Example]) -> Batch:
    """The batch of examples whose pictures agree in their grids, place by place."""
    slots = [_slot([example.pictures[place] for example in examples]) for place in range(len(examples[0].pictures))]
    written = [layout.conversation(example, [slot.grid for slot in slots]) for example in examples]
    length = -(-max(len(tokens) for tokens, _ in written) // _PAD_MULTIPLE) * _PAD_MULTIPLE
    padded = np.full((len(examples), length), PAD, dtype=np.int64)
    predictors: list[int] = []
    turn_of: list[int] = []
    turn_tasks: list[str] = []
    for row, (example, (tokens, spans)) in enumerate(zip(examples, written, strict=True)):
        padded[row, : len(tokens)] = tokens
        for turn, (start, end) in zip(example.turns, spans, strict=True):
            predictors += range(row * length + start - 1, row * length + end - 1)
            turn_of += [len(turn_tasks)] * (end - start)
            turn_tasks.append(turn.task)
    places = np.asarray(predictors, dtype=np.int64)
    return Batch(
        slots=slots,
        tokens=padded,
        predictors=places,
        targets=padded.reshape(-1)[places + 1],
        turn_of=np.asarray(turn_of, dtype=np.int64),
        turn_tasks=turn_tasks,
    )


def _slot(pictures: list[Picture]) -> Slot:
    split = [patches_of(picture.image) for picture in pictures]
    grid = split[0][0]
    labels = np.stack([_patch_labels(picture, grid) for picture in pictures])
    return Slot(grid=grid, pixels=np.stack([pixels for _, pixels in split]), marks=labels[:, 0], places=labels[:, 1])


def _patch_labels(picture: Picture, grid: Grid) -> NDArray[np.int64]:
    """[2, patches, 2]: class and place of the mark nearest to each half patch's centre, 0 where none is near."""
    stretch = (grid[1] * PATCH / picture.image.width, grid[0] * PATCH / picture.image.height)
    rows, columns = np.mgrid[0 : grid[0], 0 : 2 * grid[1]]  # two small digits fit into one patch
    centres = np.stack(((columns.reshape(-1) + 0.5) / 2, rows.reshape(-1) + 0.5)) * PATCH
    marks = np.array([(mark.x * stretch[0], mark.y * stretch[1]) for mark in picture.marks])
    distance = np.abs(centres[:, :, None] - marks.T[:, None, :]).max(0)  # [halves, marks]
    nearest = distance.argmin(1)
    reach = np.array([max(PATCH / 2, mark.reach) for mark in picture.marks])[nearest]
    near = distance.min(1) <= reach
    classes = np.array([_mark_class(mark.label) for mark in picture.marks])[nearest]
    labels = np.stack((np.where(near, classes, 0), np.where(near, nearest + 1, 0)))
    return labels.astype(np.int64).reshape(2, -1, 2)


def _mark_class(label: str) -> int:
    return 1 + int(label) if label.isdigit() else 11 + SHAPES.index(label.split()[1])
