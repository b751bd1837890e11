"""How the rows of a step's logits are sampled.

Knows requests and where their next tokens stand. Does not know logits (see `sampler`).
"""

from decoder_service.engine.request import Request
from decoder_service.engine.step import ScheduledBatch
from decoder_service.sampling.logits_processors import SamplingRow
from decoder_service.sampling.random_stream import uniform


def sampling_rows(batch: ScheduledBatch) -> list[SamplingRow]:
    """One for each token that the batch tells."""
    rows: list[SamplingRow] = []
    before, num_behind = None, 0
    for request in batch.sampled:
        # Behind each token that is tried there is one more of the same request.
        num_behind = num_behind + 1 if request is before else 0
        # A step ahead gives the token behind the one that is still to come.
        rows.append(_sampling_row(request, request.num_output_tokens + num_behind + batch.is_ahead))
        before = request
    return rows


def _sampling_row(request: Request, position: int) -> SamplingRow:
    sampling = request.sampling
    return SamplingRow(
        params=sampling,
        uniform=uniform(seed=sampling.seed, index=request.index, position=position) if sampling.temperature else 0.0,
        prompt_token_ids=request.prompt_token_ids,
        output_token_ids=request.output_token_ids,
        end_token_ids=request.end_token_ids,
        counts=request.token_counts,
        matcher=request.matcher,
    )
