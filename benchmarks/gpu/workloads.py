"""What engines are asked: prompts as token ids, and how many tokens each is to be given.

Knows numbers. Does not know engines.
"""

import random
from dataclasses import dataclass

CONTEXT = 1024
"""Prompt of the requests whose decoding is timed."""
_NUM_DECODED = 64
_NUM_OFFLINE, _LEAST, _MOST = 256, 100, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests that are all there from the start."""

    name: str
    prompts: tuple[tuple[int, ...], ...]
    num_new: tuple[int, ...]
    """Tokens that each prompt is given, whatever they are."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def num_new_tokens(self) -> int:
        """Tokens of all outputs."""
        return sum(self.num_new)

    @property
    def max_len(self) -> int:
        """Tokens of the longest request, prompt and output together."""
        return max(len(prompt) + count for prompt, count in zip(self.prompts, self.num_new, strict=True))

    def beginning(self, *, num_requests: int, num_new: int) -> "Workload":
        """The first requests with shorter outputs, to warm up with."""
        counts = tuple(min(count, num_new) for count in self.num_new[:num_requests])
        return Workload(name=f"{self.name}, warm-up", prompts=self.prompts[:num_requests], num_new=counts)


def decode_workload(batch: int, *, vocab_size: int, context: int = CONTEXT, num_new: int = _NUM_DECODED) -> Workload:
    """Cases G1 and G2: so many prompts of one length, and as many new tokens for each."""
    prompts = _prompts([context] * batch, vocab_size)
    return Workload(name=f"decode {batch} x {context}", prompts=prompts, num_new=(num_new,) * batch)


def offline_workload(
    *, vocab_size: int, num_requests: int = _NUM_OFFLINE, least: int = _LEAST, most: int = _MOST
) -> Workload:
    """Case G8: prompts and outputs of evenly spread random lengths."""
    lengths = random.Random(0)  # noqa: S311 - a workload, no secret
    prompts = _prompts([lengths.randint(least, most) for _ in range(num_requests)], vocab_size)
    num_new = tuple(lengths.randint(least, most) for _ in range(num_requests))
    return Workload(name=f"offline {num_requests}", prompts=prompts, num_new=num_new)


def _prompts(lengths: list[int], vocab_size: int) -> tuple[tuple[int, ...], ...]:
    ids = random.Random(len(lengths))  # noqa: S311
    return tuple(tuple(ids.randrange(vocab_size) for _ in range(length)) for length in lengths)
