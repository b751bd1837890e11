"""Prompts that have what their completions will be, in part or not at all.

Knows how the completions of `counting_model` go on. Does not know engines.
"""

from collections.abc import Sequence

WORKLOADS = {
    "all of it": 0,
    "all but every 16th token": 16,
    "all but every 8th token": 8,
    "all but every 4th token": 4,
    "nothing of it": 1,
}
"""What of a completion stands in its prompt: every how manieth token there is another one."""
FIRST_TOKEN = 100
"""None before it is counted: they may be control tokens."""


def prompt_tokens(max_tokens: int) -> int:
    """Tokens of each prompt for completions of so many."""
    return max_tokens + 8


def prompts(num_requests: int, *, number: int, other_every: int, max_tokens: int, vocabulary: int) -> list[list[int]]:
    """Prompts that end where their completions begin to count, and have these before, with other tokens in places.

    Those of another `number` begin elsewhere. Raises ValueError where the vocabulary is too small to count in.
    """
    most = vocabulary // 2 - prompt_tokens(max_tokens)
    if most <= FIRST_TOKEN:
        raise ValueError(f"a vocabulary of {vocabulary} is too small for completions of {max_tokens} tokens")
    found = []
    for index in range(num_requests):
        start = FIRST_TOKEN + (number * num_requests + index) * prompt_tokens(max_tokens) % (most - FIRST_TOKEN)
        completion = range(start, start + max_tokens + 4)
        told = [
            _other(token, vocabulary) if is_other(place, other_every) else token
            for place, token in enumerate(completion)
        ]
        found.append([1, *told, *completion[:3]])
    return found


def counts(prompt: Sequence[int], completion: Sequence[int]) -> bool:
    """Whether a completion counts on from its prompt."""
    first = prompt[-1] + 1
    return list(completion) == list(range(first, first + len(completion)))


def is_other(place: int, other_every: int) -> bool:
    """Whether the prompt has another token at a place of the completion."""
    return bool(other_every) and place % other_every == other_every - 1


def _other(token_id: int, vocabulary: int) -> int:
    """Of the upper half, where nobody counts, each another one: no place is to be like another."""
    return vocabulary - 1 - token_id
