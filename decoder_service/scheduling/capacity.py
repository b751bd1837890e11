"""How large a request may be at all.

Knows the limits that no waiting can lift. Does not know what runs (see `scheduler`).
"""

from dataclasses import dataclass

from common.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one request can have: all completions of its prompt, which own its full blocks together."""

    max_model_len: int
    """Most tokens of a completion and its prompt."""
    num_blocks: int
    block_size: int
    max_num_requests: int
    """Most completions that run at once."""

    def max_tokens(self, num_prompt_tokens: int, *, n: int) -> int:
        """Most tokens that each of `n` completions of a prompt can have; below 1 where none can.

        The KV cache must hold all completions to their ends at once, though they may well run one after another:
        else they would take the blocks from each other again and again.
        """
        num_shared = num_prompt_tokens // self.block_size
        num_own_blocks = (self.num_blocks - num_shared) // n
        room = (num_shared + num_own_blocks) * self.block_size
        return min(self.max_model_len, room) - num_prompt_tokens

    def check(self, num_prompt_tokens: int, max_tokens: int, *, n: int = 1) -> None:
        """Refuse what could never run to its end: raises InvalidArgumentError.

        VALUE_OUT_OF_RANGE for too many completions, MAX_TOKENS_TOO_LARGE where they would not fit without a prompt,
        PROMPT_TOO_LONG where they are too many tokens together with this one.
        """
        if n > self.max_num_requests:
            raise InvalidArgumentError(
                "VALUE_OUT_OF_RANGE",
                f"n is {n}; at most {self.max_num_requests} completions run at once here",
                field="sampling.n",
                metadata={"allowed": f"1 to {self.max_num_requests}", "got": n},
            )
        each = f" in each of {n} completions" if n > 1 else ""
        most_alone = self.max_tokens(0, n=n)
        if max_tokens > most_alone > 0:
            raise InvalidArgumentError(
                "MAX_TOKENS_TOO_LARGE",
                f"max_tokens is {max_tokens}; {most_alone} is the most for prompt and completion together{each}",
                field="sampling.max_tokens",
                metadata={"limit": most_alone, "got": max_tokens, **({"n": n} if n > 1 else {})},
            )
        most = self.max_tokens(num_prompt_tokens, n=n)
        if max_tokens > most:
            limit, got = num_prompt_tokens + most, num_prompt_tokens + max_tokens
            raise InvalidArgumentError(
                "PROMPT_TOO_LONG",
                f"the prompt and max_tokens make {got} tokens together{each}, {limit} is the most",
                field="sampling.max_tokens" if most > 0 else None,
                metadata={"limit": limit, "got": got, **({"n": n} if n > 1 else {})},
            )
