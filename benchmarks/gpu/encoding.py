"""Case G6: the patch encoder by picture size and on a mixed pack, against the measured rate of products."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.models import random_encoder
from benchmarks.gpu.pictures import PACKS, patches_of, random_pixels
from benchmarks.gpu.row_error import row_error
from benchmarks.operations import encode_flops
from benchmarks.pixtral_12b import ENCODER_400M
from common.model.attention import packed_attention
from vision_service.model.encoder import PatchEncoder, PixtralVisionModel, grid_positions

MAX_ERROR = 0.1
"""Of a row of 16-bit features: two ways sum and round in other orders, and rows that fill up change the products. In
bfloat16 a row was seen to be 0.026 from what it is in float32."""


@torch.inference_mode()
def encode_rows(device: torch.device, ceilings: Ceilings) -> Iterator[dict[str, object]]:
    """A row per pack of pictures, given as patch grids."""
    model = random_encoder(device)
    fused = _fused(model)
    for name, grids in PACKS.items():
        # Of the same pictures as peers get; of zeros all features would be zeros, which a GPU multiplies faster.
        patches = patches_of(
            random_pixels(grids, ENCODER_400M.patch_size, device, torch.bfloat16), ENCODER_400M.patch_size
        )
        error = row_error(encode(fused, patches, grids), encode(model, patches, grids))
        time, plain = (seconds(partial(encode, each, patches, grids)) for each in (fused, model))
        flops = encode_flops(ENCODER_400M, [height * width for height, width in grids])
        yield {
            "case": name,
            "error of a row": error,
            "right": error < MAX_ERROR,
            "ms": time * 1e3,
            "ms by torch alone": plain * 1e3,
            "pictures/s": len(grids) / time,
            "TFLOP/s": flops / time / 1e12,
            "share of limit": flops / time / ceilings.flops,
        }


def _fused(model: PixtralVisionModel) -> PatchEncoder:
    # Imported here: triton comes only with torch's CUDA builds.
    from vision_service.model.fused_encoder import FusedEncoder

    return FusedEncoder(model)


def encode(model: PatchEncoder, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    """Features [num_patches, width] of patches of pictures with these grids."""
    lengths = [height * width for height, width in grids]
    return encode_at(model, patches, *grid_positions(grids, patches.device), lengths)


def encode_at(model: PatchEncoder, patches: Tensor, rows: Tensor, columns: Tensor, lengths: Sequence[int]) -> Tensor:
    """The same with the patches' rows and columns, and each picture's number of patches."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = model.config.vision_attention_multiplier
        return packed_attention(query, key, value, lengths=lengths, causal=False, scale=scale)

    return model(patches, rows, columns, attend)
