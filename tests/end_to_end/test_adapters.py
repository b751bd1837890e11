"""A pair with LoRA adapters: each request is answered with the one that it asks for, and what is refused is named."""

from collections.abc import Iterator

import pytest

from common.checkpoint.checkpoint import open_checkpoint
from common.client.client import DiptychClient
from common.client.types import ClientError
from tests.adapter_files import write_adapter
from tests.end_to_end.questions import question
from tests.end_to_end.services import DEMO_MODEL, Service, decoder_service

NAMES = ("strong", "faint", "other")


@pytest.fixture(scope="module")
def adapted(vision: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder, text = tmp_path_factory.mktemp("adapters"), open_checkpoint(DEMO_MODEL).text_config
    write_adapter(folder / "strong", text, seed=1, has_vision=True, scale=30.0)
    write_adapter(folder / "faint", text, seed=2, has_vision=True, scale=1e-12)
    write_adapter(folder / "other", text, seed=3, has_vision=True, scale=30.0)
    flags = ("--lora", ",".join(f"{name}={folder / name}" for name in NAMES), "--num-blocks", "256")
    with decoder_service(*flags, vision=vision.address) as service:
        service.wait_serving()
        yield service


def test_requests_about_pictures_are_answered_by_the_adapters_that_they_ask_for(
    client: DiptychClient, adapted: Service
) -> None:
    prompt, answer = question("count", 3)
    with DiptychClient(adapted.address) as other:
        assert list(other.get_model_info(timeout=10).adapters) == sorted(NAMES)
        found = {
            name: other.complete(prompt, timeout=60, max_tokens=16, ignore_eos=True, lora=name).token_ids
            for name in NAMES
        }
        beside = other.complete(prompt, timeout=60, max_tokens=16, ignore_eos=True).token_ids
        assert other.complete(prompt, timeout=60).text == answer
    plain = client.complete(prompt, timeout=60, max_tokens=16, ignore_eos=True).token_ids
    assert found["faint"] == beside == plain
    assert len({found["strong"], found["other"], plain}) == 3
    assert adapted.metric('diptych_adapter_requests_total{adapter="strong"}') == 1


def test_an_adapter_that_is_not_there_is_refused_by_name(adapted: Service) -> None:
    with DiptychClient(adapted.address) as client, pytest.raises(ClientError) as caught:
        client.complete(question("count", 0)[0], timeout=10, lora="strongest")
    assert caught.value.reason == "UNKNOWN_ADAPTER"
    assert caught.value.field == "lora"
    assert "strongest" in str(caught.value)
