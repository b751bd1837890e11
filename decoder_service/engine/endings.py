"""What ends a completion, besides its caller and its text.

Knows tokens and sampling parameters. Does not know blocks, batches or stop texts.
"""

from common.errors import DiptychError, InternalError, InvalidArgumentError, ResourceExhaustedError
from decoder_service.engine.device_errors import DeviceMemoryError
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.step import NoToken


def finish_reason(request: Request) -> FinishReason | None:
    """Why a request ends with its newest token; `Capacity` made max_tokens keep it within the model's length."""
    token_id, sampling = request.output_token_ids[-1], request.sampling
    if token_id in sampling.stop_token_ids or (token_id in request.end_token_ids and not sampling.ignore_eos):
        return FinishReason.STOP
    return FinishReason.LENGTH if request.num_output_tokens >= sampling.max_tokens else None


def step_error(failure: Exception, error_id: str) -> DiptychError:
    """What a request ends with that no step could compute."""
    if isinstance(failure, DeviceMemoryError):
        return ResourceExhaustedError("DEVICE_MEMORY", "there is no memory left to compute this", retry_after=1.0)
    return InternalError("STEP_FAILED", "the step failed", metadata={"error_id": error_id})


def no_token_error(reason: NoToken, request: Request) -> DiptychError:
    """What a request ends with that gets no token."""
    if reason is NoToken.NOT_FINITE:
        return InternalError("NUMERIC_ERROR", "the model's output was not finite")
    if request.matcher is not None and request.matcher.has_failed:
        return InvalidArgumentError(
            "STRUCTURE_TOO_COMPLEX", "to find the tokens that may come next takes too much work", field="structured"
        )
    return InvalidArgumentError(
        "NO_TOKEN_LEFT",
        "allowed_token_ids, bad_words, min_tokens and the structure leave no token to choose",
        field="sampling",
    )
