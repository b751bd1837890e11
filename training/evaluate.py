"""Asks a running pair of services held-out questions: `python -m training.evaluate --address HOST:PORT`.

Knows the questions, the public client, and how right answers are counted. With `--shuffle` every question gets the
pictures of the next one, and the scores must drop to chance.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from common.client.client import DiptychClient
from training.scores import held_out
from training.tasks import TASKS, Example, Task


@dataclass(frozen=True, slots=True)
class Question:
    """One user message: its parts in order, text as `str` and pictures as PNG `bytes`."""

    parts: tuple[str | bytes, ...]
    answer: str


def questions(task: Task, seed: int, count: int, *, shuffle: bool) -> list[Question]:
    """The held-out questions of a task; shuffled ones have their neighbour's pictures."""
    examples = [held_out(task, seed, index) for index in range(count)]
    shown = [example.png_images for example in examples]
    if shuffle:
        shown = shown[1:] + shown[:1]
    return [_question(example, pictures) for example, pictures in zip(examples, shown, strict=True)]


def _question(example: Example, pictures: list[bytes]) -> Question:
    (turn,) = example.turns
    before, after = (pictures, []) if example.pictures_first else ([], pictures)
    parts: tuple[str | bytes, ...] = (*before, turn.question, *after)
    return Question(parts, turn.answer)


def is_right(client: DiptychClient, question: Question) -> bool:
    """Whether the greedy answer is exactly right."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "data": part}
        for part in question.parts
    ]
    completion = client.complete([{"role": "user", "content": content}], max_tokens=48, timeout=60)
    return completion.text.strip() == question.answer


def table(client: DiptychClient, *, seed: int, count: int, shuffle: bool) -> Iterator[str]:
    """Rows of a table of exact scores, one per task."""
    yield "| task | questions | exactly right | by chance (commonest answer) |"
    yield "|---|---|---|---|"
    for task in TASKS:
        asked = questions(task, seed, count, shuffle=shuffle)
        hits = 0
        for done, question in enumerate(asked, 1):
            hits += is_right(client, question)
            print(f"\r{task}: {hits}/{done} of {count}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        yield f"| {task} | {count} | {hits / count:.1%} | {_commonest(asked) / count:.1%} |"


def _commonest(asked: list[Question]) -> int:
    """How many questions the best constant answer gets right."""
    return Counter(question.answer for question in asked).most_common(1)[0][1]


def main() -> None:
    """Evaluate by the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of the decoder service")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=500, help="questions per task")
    parser.add_argument("--shuffle", action="store_true", help="negative control: exchange the pictures")
    args = parser.parse_args()
    with DiptychClient(args.address) as client:
        for line in table(client, seed=args.seed, count=args.count, shuffle=args.shuffle):
            print(line)


if __name__ == "__main__":
    main()
