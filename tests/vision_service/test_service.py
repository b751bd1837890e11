"""The service is put together as its settings say."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from common.image.preprocessing import PreprocessingMode
from common.model.settings import ComputeChoice, ModelSettings
from common.native.resizing import find_kernels
from vision_service import service
from vision_service.config import BatchConfig, CacheConfig, DecodeConfig
from vision_service.decoding.decode_pool import DecodePool
from vision_service.decoding.decode_worker import DecodeSettings

DEMO_MODEL = Path(__file__).parents[2] / "models" / "demo"


@pytest.mark.parametrize(
    ("compute", "mode", "with_kernels"),
    [
        (ComputeChoice.AUTO, PreprocessingMode.HF, True),
        (ComputeChoice.TORCH, PreprocessingMode.HF, False),
        (ComputeChoice.AUTO, PreprocessingMode.MISTRAL, False),
    ],
)
def test_workers_get_the_kernels_where_they_are_to_be_used(
    monkeypatch: pytest.MonkeyPatch, compute: ComputeChoice, mode: PreprocessingMode, with_kernels: bool
) -> None:
    given: list[str | None] = []

    class Pool(DecodePool):
        def __init__(self, settings: DecodeSettings, **sizes: float) -> None:
            given.append(settings.kernels)
            super().__init__(settings, num_workers=1, max_waiting=1, timeout=1.0)

    monkeypatch.setattr(service, "DecodePool", Pool)
    service.VisionService(
        ModelSettings(model=DEMO_MODEL, compute=compute),
        decode=DecodeConfig(preprocessing=mode),
        batch=BatchConfig(),
        cache=CacheConfig(),
        registry=CollectorRegistry(),
    )
    assert given == [str(find_kernels()) if with_kernels else None]
