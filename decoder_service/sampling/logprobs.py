"""How likely the model held the token at one place.

A plain record between whatever computes it and the messages. Natural logarithms, of the model's own distribution:
before the temperature and everything else that steers sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Logprobs:
    """One place of a sequence."""

    logprob: float
    """Of the token that stands there."""
    top_token_ids: Sequence[int] = ()
    """The likeliest tokens, as many as were asked for, likeliest first."""
    top_logprobs: Sequence[float] = ()
    """Theirs, in the same order."""
