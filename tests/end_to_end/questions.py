"""Questions of the demo model's own tasks."""

from collections.abc import Sequence

from common.client.messages import Prompt, user_message
from training.scores import held_out
from training.tasks import Task

QUESTIONS: Sequence[Task] = ("number", "count", "shapes", "which")


def question(task: Task, index: int) -> tuple[Prompt, str]:
    """A held-out question of the demo model's own tasks, and its answer."""
    example = held_out(task, 7, index)
    (turn,) = example.turns
    return [user_message(turn.question, example.png_images)], turn.answer
