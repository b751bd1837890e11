"""What is settled before two halves are loaded into one process: their threads, and which settings go together."""

from pathlib import Path
from typing import Any

import pytest

from common.model.settings import ComputeChoice, DtypeChoice, ModelSettings, Quantize
from common.server.config import ServerConfig
from decoder_service.config import EngineSettings, RequestSettings
from diptych.local import LocalConfig
from vision_service.config import BatchConfig, CacheConfig, DecodeConfig


@pytest.mark.parametrize(
    ("given", "total", "expected"), [(None, 8, 4), (None, 3, 1), (None, 1, 1), (5, 8, 5), (2, 1, 2)]
)
def test_each_half_has_half_of_the_threads_unless_a_number_is_set(given: int | None, total: int, expected: int) -> None:
    config = config_with(model=ModelSettings(model=Path("model"), threads=given)).sharing_threads(total)
    assert (config.model.threads, config.vision_model.threads) == (expected, expected)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"engine": EngineSettings(max_picture_bytes=1 << 20)}, "does not fit into --max-picture-bytes"),
        ({"server": ServerConfig(max_message_bytes=1 << 20)}, "does not fit into --max-message-bytes"),
        (
            {
                "model": ModelSettings(model=Path("model"), compute=ComputeChoice.TORCH),
                "engine": EngineSettings(quantize=Quantize.INT8),
            },
            "--quantize int8 needs the kernels",
        ),
    ],
)
def test_what_the_decoder_service_refuses_is_refused_here_too(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        config_with(**given)


def test_pictures_that_could_never_arrive_are_refused_for_the_encoder_too() -> None:
    with pytest.raises(ValueError, match="does not fit into --max-message-bytes"):
        config_with(decode=DecodeConfig(max_image_bytes=64 << 20))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"vision_device": "tpu"}, "--device 'tpu' is not supported"),
        (
            {
                "model": ModelSettings(model=Path("model"), compute=ComputeChoice.NATIVE),
                "vision_dtype": DtypeChoice.FLOAT16,
            },
            "--compute native needs",
        ),
    ],
)
def test_what_the_encoder_cannot_run_on_is_known_before_anything_is_loaded(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        config_with(**given)


def config_with(**given: Any) -> LocalConfig:  # noqa: ANN401 - of whatever type the field has
    fields: dict[str, Any] = {
        "server": ServerConfig(),
        "model": ModelSettings(model=Path("model")),
        "engine": EngineSettings(),
        "requests": RequestSettings(),
        "decode": DecodeConfig(),
        "batch": BatchConfig(),
        "cache": CacheConfig(),
    }
    return LocalConfig(**(fields | given))
