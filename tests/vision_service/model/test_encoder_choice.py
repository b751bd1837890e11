"""A faster way to compute the encoder is taken where it gives what the model gives, and left out where it does not."""

import logging

import pytest
import torch
from torch import Tensor

from common.model.layers import Attend
from tests.vision_service.model.small_encoder import CONFIG, CPU, blind_attention, masked_attention
from vision_service.model.encoder import PatchEncoder, PixtralVisionModel
from vision_service.model.encoder_choice import checked_attention, choose_encoder
from vision_service.model.segment_attention import SegmentAttention

F32 = torch.float32


class Changed:
    """An encoder whose features are those of a model with one row changed."""

    def __init__(self, model: PixtralVisionModel, value: float) -> None:
        self.config = model.config
        self._model = model
        self._value = value

    def __call__(self, patches: Tensor, rows: Tensor, columns: Tensor, attend: Attend) -> Tensor:
        features: Tensor = self._model(patches, rows, columns, attend)
        features[7] *= self._value
        return features


@pytest.fixture(scope="module")
def model() -> PixtralVisionModel:
    torch.manual_seed(0)
    return PixtralVisionModel(CONFIG).eval()


def failing(model: PixtralVisionModel) -> PatchEncoder:
    raise RuntimeError("Failed to find C compiler")


@pytest.mark.parametrize(("value", "is_taken"), [(1.0, True), (1.1, True), (1.5, False), (float("nan"), False)])
def test_one_row_that_is_far_from_the_model_is_enough_to_leave_it_out(
    model: PixtralVisionModel, caplog: pytest.LogCaptureFixture, value: float, is_taken: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = choose_encoder(model, lambda model: Changed(model, value), dtype=F32)
    assert isinstance(chosen, Changed if is_taken else PixtralVisionModel)
    assert [record.message for record in caplog.records] == (
        [] if is_taken else ["torch alone computes the encoder: its kernels give other numbers"]
    )


def test_kernels_that_cannot_be_compiled_cost_no_service(
    model: PixtralVisionModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_encoder(model, failing, dtype=F32) is model
    assert [record.message for record in caplog.records] == [
        "torch alone computes the encoder: its kernels cannot be had"
    ]


def unknown_attention(
    query: Tensor, key: Tensor, value: Tensor, *, starts: Tensor, longest: int, scale: float
) -> Tensor:
    """One that this version of torch does not have."""
    raise TypeError("an unexpected keyword argument")


@pytest.mark.parametrize(
    ("attention", "complaints"),
    [
        (masked_attention, []),
        (blind_attention, ["attention by segments gives other numbers"]),
        (unknown_attention, ["attention by segments cannot be had"]),
    ],
)
def test_attention_by_segments_is_taken_where_it_keeps_pictures_apart(
    caplog: pytest.LogCaptureFixture, attention: SegmentAttention, complaints: list[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        found = checked_attention(attention, num_heads=2, head_dim=16, device=CPU, dtype=F32)
    assert found is (None if complaints else attention)
    assert [record.message for record in caplog.records] == complaints
