"""How full the engine is and what it has done.

A plain record between the engine and whoever looks at it.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Gauges and counters, as of the last step."""

    num_waiting: int
    waiting_by_reason: Mapping[str, int]
    """The same, by what they wait for."""
    num_running: int
    num_free_blocks: int
    num_blocks: int
    num_preemptions: int
    num_steps: int
    num_steps_ahead: int
    """Steps that began before the step before them was accounted for."""
    num_splice_mismatches: int
    """Steps that failed because image rows did not fit their places in the batch."""
    num_batched_tokens: int
    """Tokens in the last batch."""
    num_near_ties: int
    """Greedy choices that rounding may have decided, so that they may depend on the batch."""
    compute: str
    """What computes the model."""
    num_queried_tokens: int
    """Tokens that the prefix cache was asked for, once for each request."""
    num_hit_tokens: int
    """Tokens that it held, and that were not computed therefore."""
    num_evicted_blocks: int
    """Blocks that it knew and that were needed for something else."""
    num_images_covered: int
    """Images that were not fetched, as it held all of their tokens."""
    num_drafts: int
    """Times that a request tried tokens."""
    num_draft_tokens: int
    """Tokens that were tried."""
    num_accepted_tokens: int
    """Those that were right."""
