"""Products of one row with all that stands before and after them: norm, gate, scales and sum, in one kernel each.

Knows tensors. Does not know layers. A product of one row reads every weight once and does next to nothing with it, so
what counts is that loads are always under way: each program adds up a few outputs, and reads ahead. Arithmetic is in
fp32 and rounded once, at the end; nothing is rounded on the way, neither the normed row nor, in 8 bits, the input.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLaunch:
    """How a device runs the kernel, which changes its time and the order of sums; to be chosen by measuring."""

    num_outputs: int = 8
    """Of a program; a power of two"""
    stage_bytes: int = 1024
    """Of each output's weights that are read at once; a power of two"""
    num_warps: int = 4
    num_stages: int = 4


DEFAULT_LAUNCH = RowLaunch()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWeight:
    """A weight that one row is multiplied with."""

    weight: Tensor
    """[num_outputs, width], in the row's type or in FP8"""
    scale: Tensor | None = None
    """fp32 [num_outputs, 1] of a weight in FP8"""


def normed_product(
    x: Tensor, norm: Tensor, weight: RowWeight, *, eps: float, launch: RowLaunch = DEFAULT_LAUNCH
) -> Tensor:
    """`weight @ rms_norm(x)` for x [1, width] and the norm's weight [width]: [1, num_outputs]."""
    out = x.new_empty(1, len(weight.weight))
    _launch(x, weight, out, norm=norm, eps=eps, launch=launch)
    return out


def gated_product(
    x: Tensor, norm: Tensor, weight: RowWeight, *, eps: float, launch: RowLaunch = DEFAULT_LAUNCH
) -> Tensor:
    """`silu(gate) * up` of the normed row, for a weight whose first half is the gate's: [1, num_outputs / 2]."""
    out = x.new_empty(1, len(weight.weight) // 2)
    _launch(x, weight, out, norm=norm, eps=eps, is_gated=True, launch=launch)
    return out


def add_product(x: Tensor, weight: RowWeight, to: Tensor, *, launch: RowLaunch = DEFAULT_LAUNCH) -> None:
    """Add `weight @ x` for x [1, width] to a row [1, num_outputs] of the same type."""
    _launch(x, weight, to, adds=True, launch=launch)


def _launch(
    x: Tensor,
    weight: RowWeight,
    out: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
    adds: bool = False,
    launch: RowLaunch,
) -> None:
    count, width = out.shape[1], x.shape[1]
    block = min(launch.stage_bytes // weight.weight.element_size(), triton.next_power_of_2(width))
    # Of a gate's program half the outputs are gates: it has as many weights as any other.
    outputs = launch.num_outputs // 2 if is_gated else launch.num_outputs
    _multiply[(triton.cdiv(count, outputs),)](
        x,
        weight.weight,
        weight.weight if weight.scale is None else weight.scale,
        x if norm is None else norm,
        out,
        eps,
        WIDTH=width,
        COUNT=count,
        OUTPUTS=outputs,
        BLOCK=block,
        STAGES=launch.num_stages,
        NORMS=norm is not None,
        GATES=is_gated,
        SCALES=weight.scale is not None,
        ADDS=adds,
        num_warps=launch.num_warps,
    )


@triton.jit
def _multiply(
    x: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    norm: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    NORMS: tl.constexpr,
    GATES: tl.constexpr,
    SCALES: tl.constexpr,
    ADDS: tl.constexpr,
) -> None:
    """A few outputs; the norm's divisor is the same for all of them, so it follows after the sums."""
    outs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_out = outs < COUNT
    rows = weight + outs.to(tl.int64)[:, None] * WIDTH
    sums = tl.zeros([OUTPUTS, BLOCK], tl.float32)
    other_sums = tl.zeros([OUTPUTS, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, WIDTH, BLOCK, num_stages=STAGES):
        columns = start + tl.arange(0, BLOCK)
        is_in = columns < WIDTH
        is_weight = is_out[:, None] & is_in[None, :]
        value = tl.load(x + columns, mask=is_in, other=0.0).to(tl.float32)
        if NORMS:
            squares += value * value
            value = value * tl.load(norm + columns, mask=is_in, other=0.0).to(tl.float32)
        sums += tl.load(rows + columns[None, :], mask=is_weight, other=0.0).to(tl.float32) * value[None, :]
        if GATES:
            others = tl.load(rows + COUNT * WIDTH + columns[None, :], mask=is_weight, other=0.0)
            other_sums += others.to(tl.float32) * value[None, :]
    total = tl.sum(sums, 1)
    other = tl.sum(other_sums, 1)
    if NORMS:
        length = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)
        total = total * length
        other = other * length
    if SCALES:
        total = total * tl.load(scale + outs, mask=is_out, other=0.0)
    if GATES:
        if SCALES:
            other = other * tl.load(scale + COUNT + outs, mask=is_out, other=0.0)
        total = total * tl.sigmoid(total) * other
    if ADDS:
        total = total + tl.load(out + outs, mask=is_out, other=0.0).to(tl.float32)
    tl.store(out + outs, total.to(out.dtype.element_ty), mask=is_out)
