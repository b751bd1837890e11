"""Products of prompts in 8 bits, by sums that are kept in fp32 and by those that tensor cores keep for themselves."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.report import Row
from benchmarks.gpu.row_error import row_error
from benchmarks.pixtral_12b import DECODER_12B
from common.model.config import MistralConfig
from decoder_service.model.fp8 import multiply_scaled, round_rows

Clock = Callable[[Callable[[], object]], float]
"""Seconds that work takes."""


@torch.inference_mode()
def eight_bit_rows(
    device: torch.device,
    ceilings: Ceilings,
    *,
    config: MistralConfig = DECODER_12B,
    num_rows: int = 4096,
    clock: Clock = seconds,
) -> Iterator[Row]:
    """A row for each of the widest products: its rate over the limit of bfloat16, and how far sums are from fp32's."""
    wide, width = config.feed_forward_length, config.hidden_size
    for num_inputs, num_outputs in ((width, 2 * wide), (wide, width)):
        x = torch.randn(num_rows, num_inputs, device=device, dtype=torch.bfloat16)
        weight = torch.randn(num_outputs, num_inputs, device=device, dtype=torch.bfloat16)
        (rows, row_scale), (columns, scale) = round_rows(x), round_rows(weight)
        want = (rows.float() * row_scale) @ (columns.float() * scale).T
        row: Row = {"case": f"{num_rows} rows, {num_inputs} to {num_outputs}"}
        for name, is_fast in (("exact", False), ("fast", True)):
            work = partial(multiply_scaled, rows, row_scale, columns, scale, dtype=x.dtype, is_fast=is_fast)
            row[f"error, {name}"] = row_error(work(), want)
            row[f"rate / bfloat16, {name}"] = 2 * x.numel() * num_outputs / clock(work) / ceilings.flops
        yield row
