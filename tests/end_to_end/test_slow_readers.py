"""A caller that does not read costs its own request, and nobody else's, over a real connection."""

import time
from collections.abc import Iterator

import grpc
import pytest

from common.client.client import DiptychClient
from common.client.messages import raw_text
from common.client.types import to_client_error
from diptych.v1 import generation_pb2 as pb
from diptych.v1.generation_pb2_grpc import GenerationServiceStub
from tests.end_to_end.services import Service, assert_idle, decoder_service

SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
"""Makes the caller's library take no more than a few messages before it is asked for them."""
LONG = pb.GenerateRequest(text=pb.RawText(text="red"), sampling=pb.SamplingParams(max_tokens=3500, ignore_eos=True))


@pytest.fixture(scope="module")
def patient_decoder() -> Iterator[Service]:
    """A decoder with room for two long requests at once, and short patience."""
    flags = ("--num-blocks", "256", "--max-unread-tokens", "16", "--stall-seconds", "4")
    with decoder_service(*flags, vision="127.0.0.1:1") as service:
        yield service


def steps_when_it_stands_still(decoder: Service) -> float:
    """Wait until no more steps are made; how many there were."""
    before, now = -1.0, decoder.metric("diptych_engine_steps_total")
    while now != before:
        time.sleep(0.3)
        before, now = now, decoder.metric("diptych_engine_steps_total")
    return now


def test_caller_that_never_reads_is_paused_then_ended_and_frees_its_blocks(patient_decoder: Service) -> None:
    with (
        grpc.insecure_channel(patient_decoder.address, SMALL_WINDOW) as channel,
        DiptychClient(patient_decoder.address) as client,
    ):
        call = GenerationServiceStub(channel).Generate(LONG, timeout=60)
        while patient_decoder.metric("diptych_num_requests_running") < 1:
            time.sleep(0.01)
        assert steps_when_it_stands_still(patient_decoder) < 1000, "it goes no further"
        beside = client.complete(raw_text("blue"), max_tokens=20, ignore_eos=True, timeout=30)
        assert len(beside.token_ids) == 20
        end = time.monotonic() + 20
        while patient_decoder.metric("diptych_num_requests_running") and time.monotonic() < end:
            time.sleep(0.05)
        assert_idle(patient_decoder)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        error = to_client_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_CONSUMER")


def test_caller_that_reads_slowly_gets_everything_in_larger_pieces(patient_decoder: Service) -> None:
    with (
        grpc.insecure_channel(patient_decoder.address, SMALL_WINDOW) as channel,
        DiptychClient(patient_decoder.address) as client,
    ):
        request = pb.GenerateRequest()
        request.CopyFrom(LONG)
        request.sampling.max_tokens = 400
        expected = client.complete(raw_text("red"), max_tokens=400, ignore_eos=True, timeout=60).token_ids
        heard: list[int] = []
        largest = 0
        for response in GenerationServiceStub(channel).Generate(request, timeout=60):
            heard += response.delta.token_ids
            largest = max(largest, len(response.delta.token_ids))
            time.sleep(0.02 if len(heard) < 200 else 0)
        assert tuple(heard) == tuple(expected)
        assert 1 < largest < 200, "the buffer, and what was computed before the pause was noticed, not all of it"
    assert_idle(patient_decoder)
