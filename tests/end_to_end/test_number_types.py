"""The pair in bfloat16 on a CPU: features take half the memory, and answers stay right, whoever else asks."""

import grpc

from common.client.client import DiptychClient
from diptych.v1 import types_pb2, vision_pb2, vision_pb2_grpc
from tests.end_to_end.questions import QUESTIONS, question
from tests.end_to_end.services import decoder_service, vision_service


def test_a_pair_in_bfloat16_answers_as_one_in_float32_does(client: DiptychClient) -> None:
    asked = [question(task, index) for task in QUESTIONS for index in range(10)]
    expected = [client.complete(prompt, timeout=30).text for prompt, _ in asked]
    with (
        vision_service("--dtype", "bfloat16") as vision,
        decoder_service("--dtype", "bfloat16", "--num-blocks", "256", vision=vision.address) as decoder,
    ):
        decoder.wait_serving()
        with grpc.insecure_channel(vision.address) as channel:
            stub = vision_pb2_grpc.VisionServiceStub(channel)
            info = stub.GetModelInfo(vision_pb2.VisionServiceGetModelInfoRequest(), timeout=10)
        assert info.dtype == types_pb2.DTYPE_BFLOAT16
        with DiptychClient(decoder.address) as other:
            found = [other.complete(prompt, timeout=30).text for prompt, _ in asked]
    assert sum(mine == its for mine, its in zip(found, expected, strict=True)) >= 38
    assert sum(text == answer for text, (_, answer) in zip(found, asked, strict=True)) >= 36


def test_a_decoder_in_float32_takes_features_in_bfloat16(client: DiptychClient) -> None:
    prompts = [question("count", index)[0] for index in range(8)]
    expected = [client.complete(prompt, timeout=30).text for prompt in prompts]
    with (
        vision_service("--dtype", "bfloat16") as vision,
        decoder_service("--num-blocks", "256", vision=vision.address) as decoder,
    ):
        decoder.wait_serving()
        with DiptychClient(decoder.address) as other:
            assert [other.complete(prompt, timeout=30).text for prompt in prompts] == expected
