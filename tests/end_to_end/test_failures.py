"""What callers see when a service is missing, wrong or on its way out."""

import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.free_port import free_port
from common.client.client import DiptychClient
from common.client.messages import GenerateOptions, generate_request, raw_text, user_message
from common.client.types import ClientError
from diptych.v1.generation_pb2_grpc import GenerationServiceStub
from tests import pictures
from tests.end_to_end.services import DEMO_MODEL, assert_idle, decoder_service, vision_service
from tests.tiny_models import Shape, random_text_model, save

PICTURE, OTHER_PICTURE = (
    user_message("How many shapes are there?", [pictures.save(pictures.noise(70, 50, seed=seed))]) for seed in (0, 1)
)


def test_vision_outage_stops_pictures_at_once_and_text_never() -> None:
    port = free_port()
    with decoder_service(vision=f"127.0.0.1:{port}") as decoder, DiptychClient(decoder.address) as client:
        with vision_service(port=port) as vision:
            decoder.wait_serving()
            assert client.complete([PICTURE], timeout=30).text
            vision.kill()
            start = time.monotonic()
            with pytest.raises(ClientError) as caught:
                # One try, as the client by itself comes back four times.
                client.complete([OTHER_PICTURE], timeout=30)
            assert time.monotonic() - start < 10
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            assert caught.value.reason == "VISION_UNAVAILABLE"
            assert caught.value.retry_after is not None
            assert client.complete(raw_text("red"), timeout=30, max_tokens=4).token_ids
            assert client.complete([PICTURE], timeout=30).usage.images_not_encoded == 1, "it needs no vision service"
            decoder.wait_serving()
            assert_idle(decoder)
        with vision_service(port=port):
            came_back = time.monotonic()
            _until_answered(client)
            assert time.monotonic() - came_back < 10
        assert_idle(decoder)


def test_decoder_is_alive_but_not_ready_before_a_vision_replica_was_seen() -> None:
    port = free_port()
    with decoder_service(vision=f"127.0.0.1:{port}") as decoder:
        decoder.wait_serving("")
        decoder.wait_serving("readiness", serving=False)
        with vision_service(port=port):
            decoder.wait_serving("readiness")
        decoder.wait_serving("readiness")


def test_replica_of_another_model_is_never_used(tmp_path: Path) -> None:
    other = shutil.copytree(DEMO_MODEL, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = "vision_tower.ln_pre.weight"
    save_file(weights | {name: weights[name] * 1.01}, other / "model.safetensors")
    with (
        vision_service(model=other) as vision,
        decoder_service(vision=vision.address) as decoder,
        DiptychClient(decoder.address) as client,
    ):
        with pytest.raises(ClientError) as caught:
            _until_answered(client)
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.reason == "MODEL_MISMATCH"
        assert client.complete(raw_text("red"), timeout=30, max_tokens=4).token_ids


def test_full_queue_refuses_with_a_time_to_come_back_and_lets_in_again_when_there_is_room() -> None:
    with decoder_service("--max-num-requests", "1", "--max-queue", "1", vision="127.0.0.1:1") as decoder:
        with grpc.insecure_channel(decoder.address) as channel, DiptychClient(decoder.address) as client:
            stub: Any = GenerationServiceStub(channel)
            endless: GenerateOptions = {"max_tokens": 4000, "ignore_eos": True}
            running = stub.Generate(generate_request(raw_text("red"), endless))
            next(running)
            waiting = stub.Generate(generate_request(raw_text("blue"), endless))
            while decoder.metric("diptych_num_requests_waiting") < 1:
                time.sleep(0.02)
            for ask in (client.complete, client.tokenize):
                with pytest.raises(ClientError) as refused:
                    ask(raw_text("green"), timeout=20)
                assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert (refused.value.reason, refused.value.retry_after) == ("QUEUE_FULL", 1.0)
                assert refused.value.metadata == {"limit": "2", "unit": "requests"}
            running.cancel()
            waiting.cancel()
            assert_idle(decoder)
            assert (
                client.complete(raw_text("green"), max_tokens=2, ignore_eos=True, timeout=20).finish_reason == "length"
            )
        assert decoder.metric('diptych_admission_rejections_total{reason="QUEUE_FULL"}') == 1


def test_sigterm_lets_running_requests_finish_and_exits_cleanly() -> None:
    with (
        vision_service() as vision,
        decoder_service(vision=vision.address) as decoder,
        DiptychClient(decoder.address) as client,
    ):
        decoder.wait_serving()
        with ThreadPoolExecutor(max_workers=8) as threads:
            running = [
                threads.submit(client.complete, [PICTURE], timeout=60, max_tokens=300, ignore_eos=True)
                for _ in range(8)
            ]
            while decoder.metric("diptych_num_requests_running") < 8:
                time.sleep(0.01)
            decoder.process.send_signal(signal.SIGTERM)
            done = [each.result() for each in running]
        assert {each.usage.completion_tokens for each in done} == {300}
        assert decoder.process.wait(timeout=20) == 0
        assert vision.stop() == 0


def test_text_only_checkpoint_needs_no_vision_service(tmp_path: Path) -> None:
    model = random_text_model(Shape(name="text", layers=1))
    model.resize_token_embeddings(512)
    save(model, tmp_path)
    shutil.copy(DEMO_MODEL / "tekken.json", tmp_path)
    with decoder_service(vision=None, model=tmp_path) as decoder, DiptychClient(decoder.address) as client:
        decoder.wait_serving()
        assert not client.get_model_info(timeout=30).supports_images
        assert len(client.complete(raw_text("red"), max_tokens=5, ignore_eos=True, timeout=30).token_ids) == 5
        with pytest.raises(ClientError) as caught:
            client.complete([PICTURE], timeout=30)
        assert caught.value.reason == "IMAGES_UNSUPPORTED"
        assert_idle(decoder)


def test_broken_checkpoint_ends_the_service_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = shutil.copytree(DEMO_MODEL, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["language_model.model.norm.weight"]
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(AssertionError), decoder_service(vision="127.0.0.1:1", model=broken):
        pass
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert "norm.weight" in lines[0]


def _until_answered(client: DiptychClient) -> None:
    """Ask until the decoder has heard from its replica."""
    while True:
        try:
            client.complete([OTHER_PICTURE], timeout=30)
            return
        except ClientError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
        time.sleep(0.1)
