"""What callers and probes see when a step hangs, fails, or the device is gone."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from common.client.client import DiptychClient
from common.client.messages import raw_text
from common.client.types import ClientError, Completion
from tests.end_to_end.faulty_decoder import CULPRIT_SEED
from tests.end_to_end.services import Service, assert_idle, faulty_decoder_service

WORDS = ("red", "blue", "green", "how many", "which")


@pytest.fixture
def fault_file(tmp_path: Path) -> Path:
    """What to write a fault to."""
    return tmp_path / "fault"


@pytest.fixture(params=["false", "true"], ids=["plain", "overlap"])
def decoder(request: pytest.FixtureRequest, fault_file: Path) -> Iterator[Service]:
    """A decoder whose device may fail, also while steps are planned ahead."""
    with faulty_decoder_service(fault_file, "--hang-seconds", "0.5", "--overlap", request.param) as service:
        yield service


@pytest.fixture
def ask(decoder: Service) -> Iterator[Callable[..., Completion]]:
    """Asks it for a completion."""
    with DiptychClient(decoder.address) as client:

        def complete(word: str, *, seed: int = 1, max_tokens: int = 40) -> Completion:
            return client.complete(
                raw_text(word), seed=seed, temperature=1.0, max_tokens=max_tokens, ignore_eos=True, timeout=60
            )

        yield complete


def test_step_that_hangs_is_no_longer_alive_until_it_ends(
    decoder: Service, fault_file: Path, ask: Callable[..., Completion]
) -> None:
    decoder.wait_serving("")
    fault_file.write_text("hang")
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(ask, "red")
        decoder.wait_serving("", serving=False)
        assert not asked.done()
        fault_file.unlink()
        decoder.wait_serving("")
        assert len(asked.result().token_ids) == 40
    assert_idle(decoder)


def test_request_that_no_step_can_compute_fails_alone(
    decoder: Service, fault_file: Path, ask: Callable[..., Completion]
) -> None:
    alone = [ask(word).token_ids for word in WORDS]
    fault_file.write_text("culprit")
    with ThreadPoolExecutor(max_workers=8) as threads:
        beside = [threads.submit(ask, word) for word in WORDS]
        culprit = threads.submit(ask, "red", seed=CULPRIT_SEED)
        with pytest.raises(ClientError) as caught:
            culprit.result()
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "STEP_FAILED")
        assert "kernel" not in str(caught.value)
        assert [each.result().token_ids for each in beside] == alone
    assert_idle(decoder)


def test_batch_that_there_is_no_memory_for_is_computed_in_parts(
    decoder: Service, fault_file: Path, ask: Callable[..., Completion]
) -> None:
    alone = [ask(word).token_ids for word in WORDS]
    fault_file.write_text("memory")
    with ThreadPoolExecutor(max_workers=8) as threads:
        assert [each.result().token_ids for each in [threads.submit(ask, word) for word in WORDS]] == alone
    assert_idle(decoder)


def test_device_that_is_gone_ends_every_request_and_the_process(
    decoder: Service, fault_file: Path, ask: Callable[..., Completion]
) -> None:
    with ThreadPoolExecutor(max_workers=4) as threads:
        asked = [threads.submit(ask, word, max_tokens=3000) for word in WORDS[:3]]
        while decoder.metric("diptych_num_requests_running") < 3:
            time.sleep(0.01)
        fault_file.write_text("lost")
        for each in asked:
            with pytest.raises(ClientError) as caught:
                each.result()
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert decoder.process.wait(timeout=20) == 1
