"""The fused kernels against the layers that they stand for."""

import pytest
import torch
from torch.nn import functional

from common.model.fused_rows import add_rms_norm, silu_and_multiply
from common.model.layers import RMSNorm
from common.model.rope import apply_rotary, inverse_frequencies, rotary_1d
from decoder_service.model.cuda.fused import rotate_and_store, round_rows, scale_sums
from decoder_service.model.fp8 import FP8, FP8_MAX
from decoder_service.model.fp8 import round_rows as plain_round_rows
from decoder_service.model.kv_cache import saturated

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("width", [48, 130])
def test_norm_of_a_sum_keeps_the_sum(width: int) -> None:
    norm = RMSNorm(width, 1e-5).to(DEVICE)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        x, delta = torch.randn(2, 5, width, device=DEVICE)
        sum_ = x + delta
        got = add_rms_norm(x, delta, norm.weight, eps=1e-5)
        torch.testing.assert_close(x, sum_)
        torch.testing.assert_close(got, norm(sum_))
        torch.testing.assert_close(add_rms_norm(x, None, norm.weight, eps=1e-5), norm(sum_))


def test_gate_is_the_first_half() -> None:
    x = torch.randn(3, 2 * 1100, device=DEVICE)
    torch.testing.assert_close(silu_and_multiply(x), functional.silu(x[:, :1100]) * x[:, 1100:])


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 1, 20), (6, 3, 8), (20, 10, 8)])
def test_keys_and_values_go_to_their_slots_rotated_and_nowhere_else(heads: int, kv_heads: int, dim: int) -> None:
    qkv = torch.randn(4, (heads + 2 * kv_heads) * dim, device=DEVICE)
    positions = torch.tensor([0, 5, 1000, 7], device=DEVICE)
    cos, sin = rotary_1d(positions, inverse_frequencies(dim, 1e6, DEVICE), torch.float32)
    widths = [heads * dim, kv_heads * dim, kv_heads * dim]
    query, key, value = (part.unflatten(1, (-1, dim)) for part in qkv.clone().split(widths, dim=1))
    key_blocks, value_blocks = torch.zeros(2, 3, 4, kv_heads, dim, device=DEVICE)
    slots = torch.tensor([3, 0, -1, 9], device=DEVICE)
    half = slice(0, dim // 2)
    got = rotate_and_store(
        qkv,
        cos[:, half].contiguous(),
        sin[:, half].contiguous(),
        slots,
        key_blocks,
        value_blocks,
        num_heads=heads,
    )
    torch.testing.assert_close(got, apply_rotary(query, cos, sin))
    stored = [0, 1, 3]
    for blocks, rows in ((key_blocks, apply_rotary(key, cos, sin)), (value_blocks, value)):
        want = torch.zeros_like(blocks).flatten(0, 1)
        want[slots[stored]] = rows[stored]
        torch.testing.assert_close(blocks.flatten(0, 1), want)


def test_rows_are_rounded_to_eight_bits_as_torch_rounds_them() -> None:
    x = torch.randn(6, 5000, device=DEVICE) * torch.tensor([1e-5, 1.0, 7.0, 0.0, 1e4, 1.0], device=DEVICE)[:, None]
    x[5, 17] = float("nan")
    (rows, scale), (wanted, wanted_scale) = round_rows(x), plain_round_rows(x)
    torch.testing.assert_close(scale[:5], wanted_scale[:5])
    torch.testing.assert_close(rows[:5].float(), wanted[:5].float(), rtol=0, atol=0)
    assert rows[5, 17].isnan()


def test_sums_are_scaled_by_row_and_column_and_rounded_once() -> None:
    sums = 1e3 * torch.randn(3, 1500, device=DEVICE)
    row_scale, column_scale = torch.rand(3, 1, device=DEVICE), torch.rand(1500, 1, device=DEVICE)
    want = (sums * row_scale * column_scale.T).half()
    assert scale_sums(sums, row_scale, column_scale, dtype=torch.float16).equal(want)
    assert not scale_sums(sums, row_scale.flip(0), column_scale, dtype=torch.float16).equal(want)


def test_keys_and_values_of_eight_bits_are_the_largest_number_at_most() -> None:
    qkv = torch.randn(2, 3 * 8, device=DEVICE)
    qkv[0, 8:] *= 1e4
    qkv[1, 20] = float("nan")
    cos, sin = torch.ones(2, 4, device=DEVICE), torch.zeros(2, 4, device=DEVICE)
    key_blocks, value_blocks = torch.zeros(2, 1, 2, 1, 8, device=DEVICE).to(FP8)
    slots = torch.tensor([1, 0], device=DEVICE)
    rotate_and_store(qkv, cos, sin, slots, key_blocks, value_blocks, num_heads=1)
    for blocks, rows in ((key_blocks, qkv[:, 8:16]), (value_blocks, qkv[:, 16:])):
        got = blocks.float()[0, [1, 0], 0]
        torch.testing.assert_close(got, saturated(rows, FP8).float(), equal_nan=True, rtol=0, atol=0)
    assert key_blocks.float().abs().max() == FP8_MAX
    assert value_blocks.float().isnan().sum() == 1
