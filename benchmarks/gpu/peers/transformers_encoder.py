"""transformers' Pixtral encoder with attention by torch's own function: all pictures in one call, and one by one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.clock import seconds
from benchmarks.gpu.encoding import encode
from benchmarks.gpu.models import random_encoder
from benchmarks.gpu.peers.peer import Setting
from benchmarks.gpu.peers.transformers_weights import transformers_encoder
from benchmarks.gpu.pictures import PACKS, patches_of, random_pixels
from benchmarks.gpu.report import Row
from benchmarks.pixtral_12b import ENCODER_400M
from common.model.config import PixtralVisionConfig
from vision_service.model.encoder import PixtralVisionModel

CHECKED = replace(
    ENCODER_400M,
    vision_hidden_size=128,
    vision_num_attention_heads=2,
    vision_num_hidden_layers=2,
    vision_intermediate_size=256,
)
_CHECKED_GRIDS = [(4, 6), (3, 3), (8, 2)]
_MAX_ERROR = 1e-3
"""Of features in float32, over their spread."""
Clock = Callable[[Callable[[], object]], float]


class Encoder:
    """Their encoder around the weights of ours."""

    def __init__(self, model: PixtralVisionModel) -> None:
        self._model = transformers_encoder(model, attention="sdpa")
        self._patch = model.config.patch_size

    @torch.inference_mode()
    def packed(self, pixels: Sequence[Tensor]) -> Tensor:
        """Features [num_patches, width] of all pictures by one call, which pads their pixels to the largest."""
        sizes = [(each.shape[1], each.shape[2]) for each in pixels]
        padded = pixels[0].new_zeros(
            len(pixels), 3, max(height for height, _ in sizes), max(width for _, width in sizes)
        )
        for row, each in zip(padded, pixels, strict=True):
            row[:, : each.shape[1], : each.shape[2]] = each
        features: Tensor = self._model(padded, image_sizes=sizes).last_hidden_state[0]
        return features

    def each(self, pixels: Sequence[Tensor]) -> Tensor:
        """The same by a call for each picture."""
        return torch.cat([self.packed([one]) for one in pixels])


def encoder_rows(
    setting: Setting, *, clock: Clock = seconds, timed: PixtralVisionConfig = ENCODER_400M
) -> Iterator[Row]:
    """A row for the check in float32, and one for each pack and way."""
    device = setting.device
    errors = _errors(CHECKED, _CHECKED_GRIDS, device, torch.float32)
    yield {"case": "float32", **errors, "right": max(errors.values()) < _MAX_ERROR}
    if max(errors.values()) >= _MAX_ERROR:
        raise ValueError("in float32 it gives other features; it is not timed")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    theirs = Encoder(random_encoder(device, timed, dtype))
    for name, grids in PACKS.items():
        pixels = random_pixels(grids, timed.patch_size, device, dtype)
        for way, work in (("packed", theirs.packed), ("one by one", theirs.each)):
            time = clock(partial(work, pixels))
            row: Row = {"case": f"{name}, {way}", "ms": time * 1e3, "pictures/s": len(grids) / time}
            if (ours := setting.ours.pictures.get(name)) is not None:
                row["ours / its"] = ours * time / len(grids)
            yield row


@torch.inference_mode()
def _errors(
    config: PixtralVisionConfig, grids: list[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """The largest difference from our features, over their spread, both ways."""
    model = random_encoder(device, config, dtype)
    pixels = random_pixels(grids, config.patch_size, device, dtype)
    want = encode(model, patches_of(pixels, config.patch_size), grids).float()
    theirs = Encoder(model)
    ways = {"packed": theirs.packed, "one by one": theirs.each}
    # Convolutions in float32 are rounded on a GPU unless somebody forbids it.
    with torch.backends.cudnn.flags(allow_tf32=False):
        return {
            f"error / spread, {way}": float((work(pixels).float() - want).abs().max() / want.std())
            for way, work in ways.items()
        }
