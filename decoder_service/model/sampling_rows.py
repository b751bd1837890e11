"""How the rows of a step's logits are sampled.

Knows requests and where their next tokens stand. Does not know logits (see `sampler`).
"""

from decoder_service.engine.request import Request
from decoder_service.engine.step import ScheduledBatch
from decoder_service.sampling.logits_processors import SamplingRow
from decoder_service.sampling.random_stream import uniform
from decoder_service.structured.structure import Matcher


def sampling_rows(batch: ScheduledBatch) -> list[SamplingRow]:
    """One for each token that the batch tells."""
    drafts = {each.request: iter(each.draft) for each in batch.requests if each.draft}
    rows: list[SamplingRow] = []
    before, matcher, num_behind = None, None, 0
    for request in batch.sampled:
        if request is before:  # Behind a token that it tries.
            num_behind += 1
            matcher = _behind(matcher, next(drafts[request]))
        else:
            before, matcher, num_behind = request, request.matcher, 0
        # A step ahead gives the token behind the one that is still to come.
        rows.append(_sampling_row(request, matcher, request.num_output_tokens + num_behind + batch.is_ahead))
    return rows


def _behind(matcher: Matcher | None, token_id: int) -> Matcher | None:
    """Where a completion is in its language behind one more token."""
    if matcher is None:
        return None
    ahead = matcher.fork()
    ahead.take(token_id)
    return ahead


def _sampling_row(request: Request, matcher: Matcher | None, position: int) -> SamplingRow:
    sampling = request.sampling
    return SamplingRow(
        params=sampling,
        uniform=uniform(seed=sampling.seed, index=request.index, position=position) if sampling.temperature else 0.0,
        prompt_token_ids=request.prompt_token_ids,
        output_token_ids=request.output_token_ids,
        end_token_ids=request.end_token_ids,
        counts=request.token_counts,
        matcher=matcher,
    )
