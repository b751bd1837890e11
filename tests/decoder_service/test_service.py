"""The decoder service as a whole, with an encoder that does not start."""

import logging
import signal

import pytest

from common.errors import UnavailableError
from common.features.feature_spec import FeatureSpec
from common.features.vision_info import VisionInfo
from common.settings.settings import read
from decoder_service import service
from decoder_service.config import DecoderConfig
from decoder_service.service import DecoderService
from tests.end_to_end.services import DEMO_MODEL


class BrokenEncoder:
    """An `ImageSource` for which there is no process to be had."""

    info: VisionInfo | None = None

    def require_info(self) -> VisionInfo:
        raise UnavailableError("VISION_UNAVAILABLE", "it never started")

    async def encode(
        self, image: bytes, *, salt: bytes, spec: FeatureSpec, buffer: memoryview, request_id: str
    ) -> None:
        raise UnavailableError("VISION_UNAVAILABLE", "it never started")

    async def start(self) -> None:
        raise OSError("no more processes")

    async def wait_ready(self) -> None:
        raise AssertionError("it never started")

    async def close(self) -> None:
        pass


@pytest.mark.timeout(60)
async def test_a_service_whose_encoder_does_not_start_says_so_and_ends_to_be_replaced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "freeze_loaded", lambda: None)
    config = read(DecoderConfig, {"model": str(DEMO_MODEL), "port": "0", "num_blocks": "64"})
    decoder = DecoderService(config, make_encoder=lambda expected: BrokenEncoder())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with caplog.at_level(logging.CRITICAL):
            assert await decoder.run() == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "no more processes" in caplog.text
