"""Several completions of one prompt: the first one computes it, the others part from it there.

Knows what completions of a request have in common. Does not know blocks or the batch (see `scheduler`), or when
they part (see `bookkeeper`).

The first completion is the request as it was submitted. The others hang on it, own nothing and are in no queue
until the prompt is computed: then each gets its first token from the same logits, and goes on as a request of its
own that owns the prompt's blocks beside the first. Preemption, images and the end are each completion's own from
then on.
"""

from dataclasses import replace

from decoder_service.engine.request import Request
from decoder_service.engine.request_status import RequestStatus


def make_forks(request: Request) -> tuple[Request, ...]:
    """The other completions of a request's prompt, which wait for it to be computed."""
    # The log probabilities of the prompt are computed and told once.
    sampling = replace(request.sampling, prompt_logprobs=None)
    return tuple(
        Request(
            request_id=request.request_id,
            index=index,
            prompt_token_ids=request.prompt_token_ids,
            placeholders=request.placeholders,
            image_identities=request.image_identities,
            cache_salt=request.cache_salt,
            adapter=request.adapter,
            sampling=sampling,
            end_token_ids=request.end_token_ids,
            arrival=request.arrival,
            priority=request.priority,
            tenant=request.tenant,
            matcher=request.matcher and request.matcher.fork(),
        )
        for index in range(1, request.sampling.n)
    )


def part(request: Request) -> tuple[Request, ...]:
    """Let the others go their own ways from where the first one is; returns them. They still own no blocks."""
    forks, request.forks = request.forks, ()
    for fork in forks:
        fork.num_computed_tokens = request.num_computed_tokens
        fork.num_finite_tokens = request.num_finite_tokens
        fork.num_cached_tokens = request.num_cached_tokens
        fork.num_saved_tokens = request.num_saved_tokens
        fork.num_known_blocks = request.num_known_blocks
        fork.num_charged_tokens = request.num_charged_tokens
        fork.block_hashes = list(request.block_hashes)
        fork.status = RequestStatus.RUNNING
    return forks
