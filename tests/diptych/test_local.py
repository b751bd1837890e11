"""Encoder and decoder in one process share its threads: whichever is made first must not take all of them."""

from pathlib import Path

import pytest

from common.model.settings import ModelSettings
from common.server.config import ServerConfig
from decoder_service.config import EngineSettings, RequestSettings
from diptych.local import LocalConfig
from vision_service.config import BatchConfig, CacheConfig, DecodeConfig


@pytest.mark.parametrize(
    ("given", "total", "expected"), [(None, 8, 4), (None, 3, 1), (None, 1, 1), (5, 8, 5), (2, 1, 2)]
)
def test_each_half_has_half_of_the_threads_unless_a_number_is_set(given: int | None, total: int, expected: int) -> None:
    config = config_with(threads=given).sharing_threads(total)
    assert (config.model.threads, config.vision_model.threads) == (expected, expected)


def config_with(*, threads: int | None) -> LocalConfig:
    return LocalConfig(
        server=ServerConfig(),
        model=ModelSettings(model=Path("model"), threads=threads),
        engine=EngineSettings(),
        requests=RequestSettings(),
        decode=DecodeConfig(),
        batch=BatchConfig(),
        cache=CacheConfig(),
    )
