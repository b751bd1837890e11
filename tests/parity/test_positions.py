"""Rotary angles are transformers', to the last place that a model can reach."""

import pytest
import torch
from transformers import MistralConfig, PixtralVisionConfig
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.pixtral.modeling_pixtral import PixtralVisionRotaryEmbedding

from common.model.rope import inverse_frequencies, rotary_1d, rotary_2d

CPU = torch.device("cpu")
FAR = 131_071


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("theta", [1e4, 1e6, 1e7, 1e9])
def test_text_angles_are_the_reference_s_up_to_131071(theta: float, head_dim: int, dtype: torch.dtype) -> None:
    config = MistralConfig(head_dim=head_dim, rope_parameters={"rope_theta": theta, "rope_type": "default"})
    positions = torch.cat((torch.arange(100), torch.arange(0, FAR, 997), torch.arange(FAR - 100, FAR + 1)))
    expected = MistralRotaryEmbedding(config)(torch.empty(0, dtype=dtype), positions[None])
    ours = rotary_1d(positions, inverse_frequencies(head_dim, theta, CPU), dtype)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other[0], atol=0, rtol=0)


@pytest.mark.parametrize("theta", [1e4, 1e6, 1e9])
def test_far_angles_are_within_rounding_of_exact_ones(theta: float) -> None:
    """One rounding of the frequency and one of the product, in fp32: at 131071 at most 2 * 2**-24 * 131071 = 0.016."""
    positions = torch.arange(FAR - 500, FAR + 1)
    exact = positions.double()[:, None] * theta ** (-torch.arange(0, 128, 2).double() / 128)
    cos, sin = rotary_1d(positions, inverse_frequencies(128, theta, CPU), torch.float32)
    for ours, function in ((cos, torch.cos), (sin, torch.sin)):
        assert (ours[:, :64] - function(exact)).abs().max() < 0.016
    # The negative control: bf16 positions, of which there are but 512 in the last half, would be lost.
    coarse, _ = rotary_1d(positions.bfloat16(), inverse_frequencies(128, theta, CPU), torch.float32)
    assert (coarse[:, :64] - torch.cos(exact)).abs().max() > 1


@pytest.mark.parametrize("head_dim", [64, 88])
@pytest.mark.parametrize("grid", [(64, 64), (1, 64), (37, 5), (110, 3)])
def test_patch_angles_are_the_reference_s_on_any_grid(grid: tuple[int, int], head_dim: int) -> None:
    height, width = grid
    config = PixtralVisionConfig(hidden_size=2 * head_dim, num_attention_heads=2)
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    ours = rotary_2d(rows, columns, inverse_frequencies(head_dim, 1e4, CPU), torch.float32)
    expected = PixtralVisionRotaryEmbedding(config)(torch.empty(0), torch.stack((rows, columns), dim=-1))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
