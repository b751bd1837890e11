"""Products of one row, as case G1 has them: torch's with the small steps beside them, and ours by several launches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.report import Row
from benchmarks.pixtral_12b import DECODER_12B
from common.model.fused_rows import add_rms_norm, silu_and_multiply
from decoder_service.model.cuda.one_row import (
    DEFAULT_LAUNCH,
    RowLaunch,
    RowWeight,
    add_product,
    gated_product,
    normed_product,
)

_LAUNCHES = (
    DEFAULT_LAUNCH,
    RowLaunch(num_stages=3),
    RowLaunch(num_stages=6),
    RowLaunch(num_outputs=4),
    RowLaunch(num_outputs=16, num_warps=8),
    RowLaunch(stage_bytes=2048, num_warps=8),
)
_WEIGHT_BYTES = 2**30
"""Of different weights that one run reads, so that none is in the device's cache from the run before."""

Step = Callable[[Tensor, Tensor], object]
"""Multiplies a row with a weight, and does what stands before and after that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    name: str
    num_inputs: int
    num_outputs: int
    theirs: Step
    ours: Callable[[Tensor, Tensor, RowLaunch], object]


@torch.inference_mode()
def one_row_rows(device: torch.device, ceilings: Ceilings) -> Iterator[Row]:
    """A row for each product: the share of the memory's limit by torch's way, and by ours with each launch."""
    for product in _products(device):
        shape = (product.num_outputs, product.num_inputs)
        count = -(-_WEIGHT_BYTES // (2 * shape[0] * shape[1]))
        weights = torch.randn(count, *shape, device=device, dtype=torch.bfloat16)
        x = torch.randn(1, product.num_inputs, device=device, dtype=torch.bfloat16)
        share = partial(_share, x, weights, ceilings)
        shares = {str(launch): share(partial(_by, product, launch)) for launch in _LAUNCHES}
        yield {"case": f"one row, {product.name}", "torch": share(product.theirs), **shares}


def _share(x: Tensor, weights: Tensor, ceilings: Ceilings, step: Step) -> float:
    def run() -> None:
        for weight in weights:
            step(x, weight)

    return 2 * weights.numel() / seconds(run, is_ahead=True) / ceilings.memory_bytes


def _by(product: _Product, launch: RowLaunch, x: Tensor, weight: Tensor) -> None:
    product.ours(x, weight, launch)


def _products(device: torch.device) -> list[_Product]:
    """Of a layer of Pixtral-12B's shape. Sums are part of the next norm where torch multiplies."""
    config, eps = DECODER_12B, DECODER_12B.rms_norm_eps
    width, wide = config.hidden_size, config.feed_forward_length
    heads, keys = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    norm, to = torch.ones(width, device=device, dtype=torch.bfloat16), torch.zeros(1, width, device=device).bfloat16()

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(add_rms_norm(x, to, norm, eps=eps), weight)

    def normed_by(x: Tensor, weight: Tensor, launch: RowLaunch) -> object:
        return normed_product(x, norm, RowWeight(weight=weight), eps=eps, launch=launch)

    def gated_by(x: Tensor, weight: Tensor, launch: RowLaunch) -> object:
        return gated_product(x, norm, RowWeight(weight=weight), eps=eps, launch=launch)

    def added_by(x: Tensor, weight: Tensor, launch: RowLaunch) -> None:
        add_product(x, RowWeight(weight=weight), to, launch=launch)

    def product(name: str, num_inputs: int, num_outputs: int, theirs: Step, ours: Callable[..., object]) -> _Product:
        return _Product(name=name, num_inputs=num_inputs, num_outputs=num_outputs, theirs=theirs, ours=ours)

    return [
        product("qkv", width, heads + 2 * keys, normed, normed_by),
        product("o", heads, width, functional.linear, added_by),
        product("gate and up", width, 2 * wide, lambda x, weight: silu_and_multiply(normed(x, weight)), gated_by),
        product("down", wide, width, functional.linear, added_by),
    ]
