"""How the tokens of one request are chosen, and what ends it.

Knows the numbers and their ranges. Does not know messages (the servicer reads those and names the field at
fault), logits, or stop texts, which are matters of text and not of tokens.
"""

import math
from dataclasses import dataclass

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Choice of tokens for one request; the defaults are greedy."""

    max_tokens: int
    """Most tokens to generate."""
    temperature: float = 0.0
    """Divisor of the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Keeps the smallest set of tokens whose probability reaches this."""
    top_k: int = 0
    """Keeps this many most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keeps tokens at least this likely relative to the most likely one."""
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end the request besides the model's own end tokens."""
    ignore_eos: bool = False
    """Goes on past the model's own end tokens."""

    def __post_init__(self) -> None:
        # Written so that NaN fails every comparison and so every check.
        if not self.max_tokens >= 1:
            raise ValueError(f"max_tokens {self.max_tokens} is below 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature} is negative or not finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not over 0 and up to 1")
        if not self.top_k >= 0:
            raise ValueError(f"top_k {self.top_k} is negative")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p {self.min_p} is not from 0 to 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed {self.seed} does not fit 64 bits")
