"""A batch that cannot fit is found before the service serves, and the message says what to do."""

import logging
from collections.abc import Sequence

import pytest
import torch

from common.errors import ResourceExhaustedError
from common.image.preprocessing import PreprocessingMode
from common.model.graph_recorder import GraphRecorder
from tests.pictures import preprocessing
from tests.replayer import Replayer
from tests.small_configs import SMALL_VISION
from vision_service.decoding.image import Pixels
from vision_service.model import memory_plan
from vision_service.model.encoded_image import EncodedImage
from vision_service.model.memory_plan import batch_bytes, warm_up
from vision_service.model.runner import EncoderRunner

SHAPE = preprocessing(PreprocessingMode.HF, image_size=64)
"""At most 4 x 4 patches."""


class FakeRunner(EncoderRunner):
    """Has room for so many patches; recorded passes take some of it."""

    def __init__(self, room: int, recorded: int = 0) -> None:
        self.room = room
        self.recorded = recorded
        self.is_recorded = False
        self.batches: list[int] = []

    def record(self, recorder: GraphRecorder, *, max_batch_patches: int) -> tuple[int, ...]:
        self.is_recorded = True
        return (max_batch_patches,)

    def forget_recorded(self) -> bool:
        had_any, self.is_recorded = self.is_recorded, False
        return had_any

    def warm_up(self, grids: Sequence[tuple[int, int]]) -> None:
        self.batches += [height * width for height, width in grids]

    def encode(self, images: Sequence[Pixels]) -> list[EncodedImage]:
        num_patches = sum(image.shape[0] * image.shape[1] // 256 for image in images)
        self.batches.append(num_patches)
        if num_patches > self.room - self.recorded * self.is_recorded:
            raise ResourceExhaustedError("ENCODER_OUT_OF_MEMORY", "no room")
        return []


def plan(
    runner: FakeRunner,
    device: str,
    *,
    max_batch_patches: int,
    host_bytes: int = 0,
    device_bytes: int = 0,
    recorder: GraphRecorder | None = None,
) -> None:
    warm_up(
        runner,
        SMALL_VISION,
        SHAPE,
        device=torch.device(device),
        dtype=torch.float32,
        max_batch_patches=max_batch_patches,
        host_bytes=host_bytes,
        device_bytes=device_bytes,
        recorder=recorder,
    )


def test_features_that_stay_on_a_gpu_must_fit_beside_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 1000)
    plan(FakeRunner(room=48), "cuda", max_batch_patches=48, device_bytes=1000)
    with pytest.raises(ValueError, match=r"--feature-cache-bytes 1001 .* 1000"):
        plan(FakeRunner(room=48), "cuda", max_batch_patches=48, device_bytes=1001)


def test_a_gpu_encodes_the_largest_batch_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 0)
    runner = FakeRunner(room=48)
    plan(runner, "cuda", max_batch_patches=50)
    assert runner.batches == [1, 48]
    with pytest.raises(ValueError, match=r"a batch of 64 patches does not fit .* lower --max-batch-patches"):
        plan(runner, "cuda", max_batch_patches=64)


def test_recorded_passes_give_way_where_the_largest_batch_does_not_fit_beside_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 0)
    roomy, tight = FakeRunner(room=64, recorded=16), FakeRunner(room=63, recorded=16)
    plan(roomy, "cuda", max_batch_patches=48, recorder=Replayer())
    assert (roomy.is_recorded, roomy.batches) == (True, [1, 48])
    with caplog.at_level(logging.WARNING):
        plan(tight, "cuda", max_batch_patches=48, recorder=Replayer())
    assert (tight.is_recorded, tight.batches) == (False, [1, 48, 48])
    assert "unrecorded" in caplog.text
    with pytest.raises(ValueError, match="a batch of 64 patches does not fit"):
        plan(FakeRunner(room=63, recorded=16), "cuda", max_batch_patches=64, recorder=Replayer())


def test_on_a_cpu_nothing_is_recorded() -> None:
    runner = FakeRunner(room=0)
    plan(runner, "cpu", max_batch_patches=16, recorder=Replayer())
    assert not runner.is_recorded


def test_an_image_larger_than_a_batch_must_fit_alone() -> None:
    runner = FakeRunner(room=15)
    with pytest.raises(ValueError, match="a batch of 16 patches"):
        plan(runner, "cuda", max_batch_patches=1)


def test_a_host_is_asked_for_its_free_memory(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    needed = batch_bytes(SMALL_VISION, torch.float32, num_patches=32)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: needed)
    with caplog.at_level(logging.WARNING):
        plan(FakeRunner(room=0), "cpu", max_batch_patches=32)
        assert not caplog.records
        plan(FakeRunner(room=0), "cpu", max_batch_patches=32, host_bytes=1)
        assert "--feature-cache-bytes" in caplog.text
    with pytest.raises(ValueError, match=r"a batch of 48 patches needs .* lower --max-batch-patches"):
        plan(FakeRunner(room=0), "cpu", max_batch_patches=48)
