"""Case G6: the patch encoder by picture size and on a mixed pack, against the measured rate of products."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.models import ENCODER_400M, random_encoder
from benchmarks.gpu.pictures import PACKS
from common.model.attention import packed_attention
from vision_service.model.encoder import PixtralVisionModel, grid_positions


@torch.inference_mode()
def encode_rows(device: torch.device, ceilings: Ceilings) -> Iterator[dict[str, object]]:
    """A row per pack of pictures, given as patch grids."""
    model = random_encoder(device)
    for name, grids in PACKS.items():
        lengths = [height * width for height, width in grids]
        patches = torch.zeros(sum(lengths), 3 * ENCODER_400M.patch_size**2, device=device, dtype=torch.bfloat16)
        time = seconds(partial(encode, model, patches, grids))
        flops = _flops(lengths)
        yield {
            "case": name,
            "ms": time * 1e3,
            "pictures/s": len(grids) / time,
            "TFLOP/s": flops / time / 1e12,
            "share of limit": flops / time / ceilings.flops,
        }


def encode(model: PixtralVisionModel, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    """Features [num_patches, width] of patches of pictures with these grids."""
    lengths = [height * width for height, width in grids]

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = model.config.vision_attention_multiplier
        return packed_attention(query, key, value, lengths=lengths, causal=False, scale=scale)

    features: Tensor = model(patches, *grid_positions(grids, patches.device), attend)
    return features


def _flops(lengths: Sequence[int]) -> float:
    """Operations of the products and of attention, without masks: every patch sees its whole picture."""
    config = ENCODER_400M
    width = config.vision_hidden_size
    layer = 4 * width * width + 3 * width * config.vision_intermediate_size
    products = 2 * sum(lengths) * (config.vision_num_hidden_layers * layer + 3 * config.patch_size**2 * width)
    attention = 4 * width * config.vision_num_hidden_layers * sum(length**2 for length in lengths)
    return float(products + attention)
