"""What a request counts for while it waits is the most that it may come to, and letting it in holds up nobody."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, cast

import pytest

from common.errors import ResourceExhaustedError
from decoder_service.api import open_requests as module
from decoder_service.api.open_requests import OpenRequests
from decoder_service.api.request_parser import parse_generate_request
from decoder_service.engine.admission import AdmissionLimits
from decoder_service.scheduling.capacity import Capacity
from diptych.v1 import generation_pb2 as pb

CAPACITY = Capacity(max_model_len=4096, num_blocks=256, block_size=16, max_num_requests=8)
LIMITS = AdmissionLimits(max_requests=99, max_waiting_tokens=1000, max_picture_bytes=99)
PROMPT = pb.TokenIds(ids=range(10))


@pytest.mark.parametrize(
    ("sampling", "num_tokens"),
    [({"max_tokens": 300}, 310), ({"max_tokens": 300, "n": 3}, 910), ({}, 10 + 256), ({"n": 2}, 10 + 512)],
)
def test_prompt_counts_once_and_every_completion_with_the_most_it_may_get(
    sampling: dict[str, int], num_tokens: int
) -> None:
    open_requests = OpenRequests(LIMITS, CAPACITY)

    def let_in(request: pb.GenerateRequest) -> Any:  # noqa: ANN401
        parsed = parse_generate_request(request, vocabulary_size=512, max_priority=0, adapters={})
        return open_requests._place(parsed)

    fitting, too_many = (
        pb.GenerateRequest(token_ids=PROMPT, sampling=pb.SamplingParams(max_tokens=1000 - num_tokens - 10 + more))
        for more in (0, 1)
    )
    with let_in(pb.GenerateRequest(token_ids=PROMPT, sampling=pb.SamplingParams(**cast(Any, sampling)))):
        assert open_requests.admission.num_waiting_tokens == num_tokens
        with let_in(fitting):
            assert open_requests.admission.num_waiting_tokens == 1000
        with pytest.raises(ResourceExhaustedError, match="too many tokens are waiting"), let_in(too_many):
            pass
    assert open_requests.admission.num_waiting_tokens == 0


@pytest.mark.parametrize(
    "prompt",
    [{"token_ids": pb.TokenIds(ids=[3] * 100_000)}, {"text": pb.RawText(text="x" * 400_000)}],
    ids=["token_ids", "text"],
)
def test_a_prompt_that_is_longer_than_any_keeps_nobody_out_until_it_is_refused(prompt: dict[str, Any]) -> None:
    limits = AdmissionLimits(max_requests=99, max_waiting_tokens=10_000, max_picture_bytes=99)
    open_requests = OpenRequests(limits, CAPACITY)
    request = pb.GenerateRequest(**prompt, sampling=pb.SamplingParams(max_tokens=4))
    parsed = parse_generate_request(request, vocabulary_size=512, max_priority=0, adapters={})
    with open_requests._place(parsed):
        assert open_requests.admission.num_waiting_tokens == CAPACITY.max_model_len + 4
        open_requests.admission.check_tokens(5000)


async def test_a_large_request_is_told_from_others_while_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()

    def digest(request: pb.GenerateRequest, pictures: Sequence[bytes]) -> bytes:
        assert goes_on.wait(5), "the loop stood still"
        return b"digest"

    monkeypatch.setattr(module, "request_digest", digest)
    requests = OpenRequests(LIMITS, CAPACITY)
    request = pb.GenerateRequest(request_id="a", text=pb.RawText(text="x" * 300_000))
    parsed = parse_generate_request(request, vocabulary_size=512, max_priority=0, adapters={})
    asyncio.get_running_loop().call_soon(goes_on.set)
    async with requests.holding(request, parsed, deadline=asyncio.get_running_loop().time() + 10):
        assert requests.admission.num_waiting_tokens > 0
    await requests.settled()
    assert requests.admission.num_waiting_tokens == 0
