"""How often answers are exactly right.

Knows counting, and the held-out questions. Does not know how answers come about beyond the model's own
logits; `evaluate` asks running services instead.
"""

from random import Random

import numpy as np
import torch
from numpy.typing import NDArray

from training.batches import Batch, ChatLayout, assemble
from training.model import TrainablePixtral
from training.tasks import TASKS, Example, Task, sample


def held_out(task: Task, seed: int, index: int) -> Example:
    """A question that training never sees: its random stream has another name."""
    return sample(task, Random(f"held-out {seed} {task} {index}"))  # noqa: S311


def right_turns(batch: Batch, right: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[turns]: whether every target of the turn was the likeliest token.

    With the right answer so far given, this holds exactly when greedy decoding gives the right answer.
    """
    wrong: NDArray[np.intp] = np.bincount(batch.turn_of, weights=~right, minlength=len(batch.turn_tasks))
    return np.equal(wrong, 0)


@torch.no_grad()
def held_out_accuracy(model: TrainablePixtral, layout: ChatLayout, seed: int, count: int) -> dict[Task, float]:
    """Share of `count` held-out questions of each task that the model answers exactly."""
    accuracy: dict[Task, float] = {}
    for task in TASKS:
        hits = 0
        for index in range(count):
            batch = assemble(layout, [held_out(task, seed, index)])
            hits += bool(right_turns(batch, model(batch)[2].numpy()).all())
        accuracy[task] = hits / count
    return accuracy


class RunningScores:
    """Exactness of every kind of turn over the recent batches."""

    def __init__(self) -> None:
        self._recent: dict[str, float] = {}

    def add(self, batch: Batch, right: NDArray[np.bool_]) -> None:
        """Count a batch's turns."""
        turns = right_turns(batch, right)
        tasks = np.asarray(batch.turn_tasks)
        for task in sorted(set(batch.turn_tasks)):
            share = float(turns[tasks == task].mean())
            self._recent[task] = 0.95 * self._recent.get(task, share) + 0.05 * share

    def __str__(self) -> str:
        return " ".join(f"{task} {share:.2f}" for task, share in sorted(self._recent.items()))
