"""Small steps between products that encoder and decoder share, each one Triton kernel instead of several of torch's.

Knows tensors. Does not know weights' names. Needs triton, which comes with torch's CUDA builds. Arithmetic is in fp32
and rounded once, at the end; the norm rounds before its weight too, as the reference does.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, *, eps: float) -> Tensor:
    """Root-mean-square norm of the rows of x + delta, [num_tokens, hidden_size] all; x becomes the sum."""
    out = torch.empty_like(x)
    width = x.shape[-1]
    _add_rms_norm[(len(x),)](
        x,
        x if delta is None else delta,
        weight,
        out,
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADDS=delta is not None,
        num_warps=8 if width > 2048 else 4,
    )
    return out


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` for gate_up [num_tokens, 2 * width], whose rows hold the gate first: [num_tokens, width]."""
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((num_tokens, width))
    _silu_and_multiply[(num_tokens, triton.cdiv(width, 1024))](gate_up, out, WIDTH=width, BLOCK=1024, num_warps=4)
    return out


@triton.jit
def _add_rms_norm(
    x: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    is_in = columns < WIDTH
    value = tl.load(x + row + columns, mask=is_in, other=0.0)
    if ADDS:
        value = value + tl.load(delta + row + columns, mask=is_in, other=0.0)
        tl.store(x + row + columns, value, mask=is_in)
    wide = value.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    scaled = wide.to(value.dtype) * tl.load(weight + columns, mask=is_in, other=0.0)
    tl.store(out + row + columns, scaled, mask=is_in)


@triton.jit
def _silu_and_multiply(gate_up: tl.tensor, out: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = columns < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + columns, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + columns, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=is_in)
