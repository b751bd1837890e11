"""How far two engines' greedy tokens are the same.

Knows token ids. Two engines that round differently part for good at the first token whose logits were nearly equal,
so tokens are counted up to there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile


@dataclass(frozen=True, slots=True)
class Agreement:
    """Prompts whose tokens are all the same, and tokens before the first that differs."""

    num_same_prompts: int
    num_prompts: int
    num_same_tokens: int
    num_tokens: int

    @property
    def is_exact(self) -> bool:
        """Whether every token of every prompt is the same."""
        return self.num_same_prompts == self.num_prompts

    def __str__(self) -> str:
        return f"{self.num_same_prompts}/{self.num_prompts} prompts, {self.num_same_tokens}/{self.num_tokens} tokens"


def agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> Agreement:
    """Compare the tokens of the same prompts; a missing token differs."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(theirs)} answers for {len(ours)} prompts")
    same = [_num_same(left, right) for left, right in zip(ours, theirs, strict=True)]
    lengths = [max(len(left), len(right)) for left, right in zip(ours, theirs, strict=True)]
    return Agreement(
        num_same_prompts=sum(count == length for count, length in zip(same, lengths, strict=True)),
        num_prompts=len(ours),
        num_same_tokens=sum(same),
        num_tokens=sum(lengths),
    )


def _num_same(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
