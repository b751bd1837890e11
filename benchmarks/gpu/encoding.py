"""Case G6: the patch encoder by picture size and on a mixed pack, against the measured rate of products."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.models import ENCODER_400M, random_encoder
from common.model.attention import packed_attention
from vision_service.model.encoder import PixtralVisionModel, grid_positions

_PACKS = {
    "256 px x 16": [(16, 16)] * 16,
    "512 px x 4": [(32, 32)] * 4,
    "640 px x 2": [(40, 40)] * 2,
    "1024 px": [(64, 64)],
    "16 of mixed sizes": [(8 + 3 * index % 40, 10 + 7 * index % 50) for index in range(16)],
}


@torch.inference_mode()
def encode_rows(device: torch.device, ceilings: Ceilings) -> Iterator[dict[str, object]]:
    """A row per pack of pictures, given as patch grids."""
    model = random_encoder(device)
    for name, grids in _PACKS.items():
        lengths = [height * width for height, width in grids]
        time = seconds(partial(_encode, model, grids, lengths, device))
        flops = _flops(lengths)
        yield {
            "case": name,
            "ms": time * 1e3,
            "pictures/s": len(grids) / time,
            "TFLOP/s": flops / time / 1e12,
            "share of limit": flops / time / ceilings.flops,
        }


def _encode(
    model: PixtralVisionModel, grids: Sequence[tuple[int, int]], lengths: Sequence[int], device: torch.device
) -> Tensor:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = ENCODER_400M.vision_attention_multiplier
        return packed_attention(query, key, value, lengths=lengths, causal=False, scale=scale)

    patches = torch.zeros(sum(lengths), 3 * ENCODER_400M.patch_size**2, device=device, dtype=torch.bfloat16)
    features: Tensor = model(patches, *grid_positions(grids, device), attend)
    return features


def _flops(lengths: Sequence[int]) -> float:
    """Operations of the products and of attention, without masks: every patch sees its whole picture."""
    config = ENCODER_400M
    width = config.vision_hidden_size
    layer = 4 * width * width + 3 * width * config.vision_intermediate_size
    products = 2 * sum(lengths) * (config.vision_num_hidden_layers * layer + 3 * config.patch_size**2 * width)
    attention = 4 * width * config.vision_num_hidden_layers * sum(length**2 for length in lengths)
    return float(products + attention)
