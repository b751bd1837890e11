"""The encoder with kernels of its own gives what its modules give, in Triton's interpreter where there is no GPU."""

import copy
from functools import partial

import pytest
import torch

from common.model.attention import packed_attention
from common.model.rope import apply_rotary, inverse_frequencies, rotary_1d
from tests.replayer import Replayer
from tests.vision_service.model.small_encoder import (
    CONFIG,
    CPU,
    SHAPE,
    encode,
    images,
    make_runner,
    masked_attention,
)
from tests.vision_service.model.small_encoder import model as model
from vision_service.model.encoder import PatchEncoder, PixtralVisionModel, grid_positions
from vision_service.model.fused_encoder import FusedEncoder, rotate
from vision_service.model.runner import EncoderRunner

PACKS = [[(2, 2)], [(3, 5), (4, 2)], [(1, 1)] * 3]
"""Small, as the interpreter takes its time for every patch."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def features(encoder: PatchEncoder, grids: list[tuple[int, int]], *, is_turned: bool = False) -> torch.Tensor:
    """Of random patches; with `is_turned` rows and columns change places."""
    lengths = [height * width for height, width in grids]
    generator = torch.Generator().manual_seed(len(grids))
    patches = torch.randn(sum(lengths), 3 * CONFIG.patch_size**2, generator=generator).to(DEVICE)
    rows, columns = grid_positions(grids, DEVICE)
    attend = partial(packed_attention, lengths=lengths, causal=False, scale=CONFIG.vision_attention_multiplier)
    places = (columns, rows) if is_turned else (rows, columns)
    return encoder(patches, *places, lambda layer, query, key, value: attend(query, key, value))


@pytest.mark.parametrize("grids", PACKS)
@torch.inference_mode()
def test_features_are_those_of_the_modules(model: PixtralVisionModel, grids: list[tuple[int, int]]) -> None:
    plain = copy.deepcopy(model).to(DEVICE)
    want = features(plain, grids)
    fused = FusedEncoder(plain)
    torch.testing.assert_close(features(fused, grids), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features(plain, grids), want)  # Its weights are views now, of the same numbers.
    if any(height > 1 for height, _ in grids):
        assert not torch.allclose(features(fused, grids, is_turned=True), want, atol=1e-2)


@pytest.mark.parametrize(("heads", "dim"), [(2, 16), (3, 12)])
@torch.inference_mode()
def test_queries_and_keys_are_rotated_and_values_left_alone(heads: int, dim: int) -> None:
    qkv = torch.randn(7, 3, heads, dim, device=DEVICE)
    cos, sin = rotary_1d(torch.arange(7, device=DEVICE), inverse_frequencies(dim, 1e4, DEVICE), torch.float32)
    want = torch.stack([apply_rotary(qkv[:, 0], cos, sin), apply_rotary(qkv[:, 1], cos, sin), qkv[:, 2]], dim=1)
    rotate(qkv, cos[:, : dim // 2].contiguous(), sin[:, : dim // 2].contiguous())
    torch.testing.assert_close(qkv, want)


def test_a_runner_with_them_encodes_the_same_recorded_or_not(model: PixtralVisionModel) -> None:
    own = EncoderRunner(
        copy.deepcopy(model), SHAPE, device=CPU, dtype=torch.float32, segment_attention=masked_attention, fused=True
    )
    pack = images(PACKS[1])
    want = encode(make_runner(model), pack)
    for is_recorded in (False, True):
        assert own.record(Replayer(), max_batch_patches=24) == (24,) if is_recorded else True
        for one, other in zip(encode(own, pack), want, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
