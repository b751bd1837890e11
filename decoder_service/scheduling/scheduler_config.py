"""Limits of a step and of a request.

Knows numbers and what they may be. Does not know what is done with them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of a step and of a request."""

    max_num_batched_tokens: int
    """Most tokens in a step."""
    max_num_requests: int
    """Most requests that run at once."""
    max_model_len: int
    """Most tokens of a request, prompt and output together."""
    max_num_mixed_tokens: int | None = None
    """What a prompt may have in a step that also gives others their next tokens, besides as many tokens as those are.

    Several have so many times as much together as `StepPlan` counts them for; no limit where unset.
    """
    max_step_stretch: float | None = None
    """Most times as long that such a step may take as without prompts; 1 + what they count for where unset.

    Judged by tokens, at `max_num_mixed_tokens`: without that there is no such limit either.
    """
    num_speculative_tokens: int = 0
    """Most tokens that a request tries in a step, see `drafting`; 0 tries none."""
    num_doubling_tokens: int = 200
    """Tokens that take as long to compute as all weights take to read; by that it is judged what is worth trying."""
    num_spare_blocks: int = 0
    """Blocks that an admission leaves free while others run, as those will soon need more."""

    def __post_init__(self) -> None:
        if self.max_num_requests < 1 or self.max_model_len < 1:
            raise ValueError("max_num_requests and max_model_len must be 1 or more")
        if self.max_num_mixed_tokens is not None and self.max_num_mixed_tokens < 1:
            raise ValueError("max_num_mixed_tokens must be 1 or more: prompts must go on beside those that never pause")
        if self.max_step_stretch is not None and self.max_step_stretch <= 1:
            raise ValueError("max_step_stretch must be above 1: prompts must go on beside those that never pause")
        if self.max_num_batched_tokens < self.max_num_requests:
            # Every running request moves in every step, so each needs room for a token.
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below "
                f"max_num_requests {self.max_num_requests}"
            )
