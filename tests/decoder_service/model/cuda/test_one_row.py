"""Products of one row against the modules that they stand for."""

import pytest
import torch
from torch.nn import functional

from common.model.layers import RMSNorm
from decoder_service.model.cuda.one_row import RowWeight, add_product, gated_product, normed_product
from decoder_service.model.fp8 import round_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(64, 16), (130, 21), (1500, 9)]
"""Width and outputs: whole tiles, and parts of one."""


def made(width: int, count: int, *, in_fp8: bool) -> tuple[RowWeight, torch.Tensor]:
    """A weight and what it means in fp32."""
    exact = torch.randn(count, width, device=DEVICE) * width**-0.5
    if not in_fp8:
        return RowWeight(weight=exact), exact
    weight, scale = round_rows(exact)
    return RowWeight(weight=weight, scale=scale), weight.float() * scale


def made_norm(width: int) -> RMSNorm:
    norm = RMSNorm(width, 1e-5).to(DEVICE)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


@pytest.mark.parametrize("in_fp8", [False, True])
@pytest.mark.parametrize(("width", "count"), SHAPES)
@torch.inference_mode()
def test_one_kernel_is_norm_product_scale_gate_and_sum(width: int, count: int, in_fp8: bool) -> None:
    x, norm = 3 * torch.randn(1, width, device=DEVICE), made_norm(width)
    weight, exact = made(width, count, in_fp8=in_fp8)
    torch.testing.assert_close(normed_product(x, norm.weight, weight, eps=norm.eps), norm(x) @ exact.T)
    to = torch.randn(1, count, device=DEVICE)
    want = to + x @ exact.T
    add_product(x, weight, to)
    torch.testing.assert_close(to, want)
    both, exact = made(width, 2 * count, in_fp8=in_fp8)
    gate, up = (norm(x) @ exact.T).split(count, dim=1)
    torch.testing.assert_close(gated_product(x, norm.weight, both, eps=norm.eps), functional.silu(gate) * up)


@torch.inference_mode()
def test_in_sixteen_bits_a_row_is_nearer_to_exact_than_one_that_is_rounded_on_the_way() -> None:
    """Of float16, as the interpreter (triton 3.7) cuts numbers off to bfloat16 and does not round them."""
    width, count = 1000, 512
    torch.manual_seed(0)
    norm, weight = made_norm(width), torch.randn(count, width, device=DEVICE).half()
    x, half_norm = torch.randn(1, width, device=DEVICE).half(), norm.weight.half()
    got = normed_product(x, half_norm, RowWeight(weight=weight), eps=norm.eps)
    norm.weight.copy_(half_norm)
    want = norm(x.float()) @ weight.float().T
    rounded = (norm.half()(x).float() @ weight.float().T).half()
    assert got.dtype == torch.float16
    assert (got.float() - want).norm() < 0.8 * (rounded.float() - want).norm()
    torch.testing.assert_close(got.float(), want, atol=2e-3 * want.std().item(), rtol=1e-3)
