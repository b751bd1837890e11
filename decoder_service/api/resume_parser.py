"""From the place where a stream broke to what can be taken up there, or to the field at fault.

Knows protobuf and which requests can be taken up at all.
"""

from typing import Final

from common.errors import InvalidArgumentError
from decoder_service.api.field_checks import Range, check_count, missing, present_fields
from decoder_service.prompt.prompt import check_token_ids
from decoder_service.text.resumption import Resumption
from diptych.v1 import generation_pb2 as pb

_MESSAGES: Final = Range.between(0, 2**31 - 1)
"""Leaves room in 32 bits for the numbers of those that follow."""


def check_resumption_length(request: pb.GenerateRequest, *, max_model_len: int) -> None:
    """Refuse more tokens than a completion can have, before anybody reads them all."""
    check_count(request.resume_from.token_ids, max_model_len, "resume_from.token_ids", "ids")


def parse_resumption(request: pb.GenerateRequest, *, vocabulary_size: int) -> Resumption | None:
    """Where a request goes on; None where it begins. Raises InvalidArgumentError with the field at fault."""
    if not request.HasField("resume_from"):
        return None
    point, sampling = request.resume_from, request.sampling
    present_fields(point, {"token_ids", "num_characters", "num_messages"}, prefix="resume_from.")
    if not point.token_ids:
        raise missing("resume_from.token_ids")
    _MESSAGES.check(point.num_messages, name="num_messages", field="resume_from.num_messages")
    if sampling.n > 1:
        # A stream of several breaks at several places at once.
        raise InvalidArgumentError("FIELDS_CONFLICT", "one completion alone can be taken up", field="sampling.n")
    if sampling.temperature > 0 and not sampling.HasField("seed"):
        raise missing("sampling.seed")
    check_token_ids(point.token_ids, vocabulary_size=vocabulary_size, field="resume_from.token_ids")
    return Resumption(
        token_ids=tuple(point.token_ids), num_characters=point.num_characters, num_messages=point.num_messages
    )
