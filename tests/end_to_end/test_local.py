"""One process with the encoder inside gives what the pair gives, and behaves as a service should."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from common.client.client import DiptychClient
from common.client.messages import raw_text, user_message
from common.client.types import ClientError
from tests import pictures
from tests.end_to_end.services import Service, assert_idle, local_service

FILES = [pictures.save(pictures.noise(*size, seed=seed)) for seed, size in enumerate([(70, 50), (33, 90), (160, 120)])]


@pytest.fixture(scope="module")
def local() -> Iterator[Service]:
    with local_service("--num-blocks", "256") as service:
        service.wait_serving()
        yield service


def test_answers_are_those_of_the_pair(local: Service, client: DiptychClient) -> None:
    chats = [[user_message("How many shapes are there?", FILES[:count])] for count in (1, 2, 3)]
    with DiptychClient(local.address) as alone:
        for chat in chats:
            ours, theirs = (each.complete(chat, timeout=30, max_tokens=24, ignore_eos=True) for each in (alone, client))
            assert ours.token_ids == theirs.token_ids
            assert (ours.usage.image_tokens, ours.usage.prompt_tokens) == (
                theirs.usage.image_tokens,
                theirs.usage.prompt_tokens,
            )
        assert alone.get_model_info(timeout=30) == client.get_model_info(timeout=30)
    assert local.metric("diptych_vision_images_encoded_total") == 3
    assert local.metric("diptych_images_encoded_total") == 3
    assert_idle(local)


def test_a_broken_picture_fails_alone(local: Service) -> None:
    with DiptychClient(local.address) as client, ThreadPoolExecutor() as threads:
        good = [threads.submit(client.complete, [user_message("?", [file])], timeout=30) for file in FILES]
        with pytest.raises(ClientError) as caught:
            client.complete([user_message("?", [FILES[0][:-100]])], timeout=30)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.reason == "IMAGE_UNDECODABLE"
        assert all(each.result().token_ids for each in good)
    assert_idle(local)


def test_sigterm_lets_a_request_with_a_picture_finish() -> None:
    with local_service() as local, DiptychClient(local.address) as client, ThreadPoolExecutor() as threads:
        local.wait_serving()
        question = [user_message("?", [FILES[0]])]
        running = threads.submit(client.complete, question, timeout=60, max_tokens=300, ignore_eos=True)
        while local.metric("diptych_num_requests_running") < 1:
            time.sleep(0.01)
        local.process.send_signal(signal.SIGTERM)
        assert running.result().usage.completion_tokens == 300
        assert local.process.wait(timeout=20) == 0
        with pytest.raises(ClientError):
            client.complete(raw_text("red"), timeout=5)
