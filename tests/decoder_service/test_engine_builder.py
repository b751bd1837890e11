"""Settings that the model does not allow are known from its config, before its weights are read."""

from pathlib import Path

import pytest

from common.checkpoint import open_checkpoint
from common.model_settings import ModelSettings
from common.server_config import ServerConfig
from decoder_service.config import DecoderConfig, EngineSettings, RequestSettings
from decoder_service.engine_builder import build_run_config

DEMO = Path(__file__).parents[2] / "models" / "demo"
LARGEST = 10 * 10 * 128 * 2
"""Bytes of the largest picture's features in the demo model, in 16 bits."""


def config_of(**engine: int) -> DecoderConfig:
    return DecoderConfig(
        server=ServerConfig(),
        model=ModelSettings(model=DEMO),
        engine=EngineSettings(**engine),  # type: ignore[arg-type] # only numbers are given
        requests=RequestSettings(),
    )


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"feature_bytes": LARGEST - 1}, f"--feature-bytes {LARGEST - 1} is less than .*, {LARGEST}"),
        ({"max_model_len": 4097}, "--max-model-len 4097 is over the model's 4096"),
    ],
)
def test_what_the_model_does_not_allow_is_refused_before_its_weights_are_read(
    engine: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build_run_config(config_of(**engine), open_checkpoint(DEMO))


def test_what_it_just_allows_is_taken() -> None:
    """The negative control."""
    config = config_of(feature_bytes=LARGEST, max_model_len=4096)
    assert build_run_config(config, open_checkpoint(DEMO)).max_seq_len == 4096
