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
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens of prompt and output and multiplies the negative ones."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for every time that it stands in the output."""
    presence_penalty: float = 0.0
    """Taken off the logits of the output's tokens, once each."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, each at most once, and what is added to their logits."""
    allowed_token_ids: tuple[int, ...] = ()
    """No other token is chosen; empty allows all."""
    bad_token_sequences: tuple[tuple[int, ...], ...] = ()
    """The last token of each is not chosen where the ones before it have just been read or generated."""
    min_tokens: int = 0
    """No token that would end the request is chosen before this many are generated."""
    seed: int = 0
    n: int = 1
    """Completions of the prompt; each draws its own numbers from the seed."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end the request besides the model's own end tokens."""
    ignore_eos: bool = False
    """Goes on past the model's own end tokens."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told with each token; `None` tells no logprobs at all."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""

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
        if not self.n >= 1:
            raise ValueError(f"n {self.n} is below 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed {self.seed} does not fit 64 bits")
        self._check_steering()

    @property
    def max_completion_tokens(self) -> int:
        """Most tokens of all completions together."""
        return self.n * self.max_tokens

    @property
    def steers_logits(self) -> bool:
        """Whether logits are changed before the temperature; false for nearly all requests, which then pay nothing."""
        return bool(
            self.repetition_penalty != 1
            or self.frequency_penalty
            or self.presence_penalty
            or self.logit_bias
            or self.allowed_token_ids
            or self.bad_token_sequences
            or self.min_tokens
        )

    @property
    def is_greedy(self) -> bool:
        """Whether nothing but the model has a say in the next token."""
        return not self.temperature and not self.steers_logits

    @property
    def is_plain(self) -> bool:
        """Whether no more is done with logits than to take the largest."""
        return self.is_greedy and self.logprobs is None

    def _check_steering(self) -> None:
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty {self.repetition_penalty} is not over 0 or not finite")
        if not math.isfinite(self.frequency_penalty):
            raise ValueError(f"frequency_penalty {self.frequency_penalty} is not finite")
        if not math.isfinite(self.presence_penalty):
            raise ValueError(f"presence_penalty {self.presence_penalty} is not finite")
        if not all(math.isfinite(bias) for _, bias in self.logit_bias):
            raise ValueError("logit_bias holds a value that is not finite")
        if not all(self.bad_token_sequences):
            raise ValueError("bad_token_sequences holds an empty one")
        if not self.min_tokens >= 0:
            raise ValueError(f"min_tokens {self.min_tokens} is negative")
