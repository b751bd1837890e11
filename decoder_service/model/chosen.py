"""The tokens that a step chose: on the device for the step that goes on from them, and on the host once they are there.

Knows logits and how tokens are told to the engine. Does not know how they are computed (see `runner`) or drawn (see
`sampler`).
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder_service.engine.step import NoToken, StepResult
from decoder_service.model.batch import BatchLayout
from decoder_service.model.compute import WholeCompute
from decoder_service.model.near_ties import count_near_ties
from decoder_service.model.staging import Staging
from decoder_service.sampling.sampler import SamplingBatch, as_token_ids, choose, outcomes


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a step chose, perhaps before the device has."""

    token_ids: Callable[[], Tensor]
    """The tokens, int64 [num_sampled], on the device; any at all for a row that has none."""
    read: Callable[[], StepResult]
    """Waits for them; is called once."""


def plain_result(whole: WholeCompute, layout: BatchLayout) -> StepResult:
    """The likeliest tokens of a batch, in one call."""
    token_ids, num_near_ties = whole.next_tokens(layout)
    told = [NoToken.NOT_FINITE if token_id is None else token_id for token_id in token_ids]
    return StepResult(token_ids=told, num_near_ties=num_near_ties)


def choose_plainly(whole: WholeCompute, layout: BatchLayout, before: "Future[Chosen] | None") -> Chosen:
    """The same as a step that another can go on from; `before` is the step that this one goes on from, if any."""
    if before is not None:
        layout.continue_from(before.result().token_ids().tolist())
    result = plain_result(whole, layout)
    token_ids = [0 if isinstance(token_id, NoToken) else token_id for token_id in result.token_ids]
    return Chosen(lambda: torch.tensor(token_ids), lambda: result)


def choose_greedily(whole: WholeCompute | None, logits: Tensor) -> Chosen:
    """The likeliest tokens of logits [num_sampled, vocab_size]. Raises RuntimeError without kernels."""
    if whole is None:
        raise RuntimeError("only the kernels choose tokens that are not sampled")
    likeliest, finite, near_ties = whole.greedy(logits)
    columns = zip(likeliest, finite, strict=True)
    told = [token_id if is_finite else NoToken.NOT_FINITE for token_id, is_finite in columns]
    result = StepResult(token_ids=told, num_near_ties=sum(near_ties))
    return Chosen(lambda: torch.tensor(likeliest), lambda: result)


def choose_tokens(logits: Tensor, sampling: SamplingBatch, staging: Staging) -> Chosen:
    """Sampled tokens of logits [num_sampled, vocab_size]; the device is not waited for, unless a row is steered."""
    choice = choose(logits, sampling)
    is_greedy = sampling.is_greedy(logits.device)
    # All in one tensor, as each read costs a wait.
    numbers = staging.read(torch.cat([choice, count_near_ties(logits, is_greedy)]))

    def read() -> StepResult:
        *told, num_near_ties = numbers()
        return StepResult(token_ids=outcomes(told), num_near_ties=num_near_ties)

    return Chosen(lambda: as_token_ids(choice), read)
