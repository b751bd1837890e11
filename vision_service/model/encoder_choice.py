"""Chooses what computes the encoder, once, when the service starts.

Knows that a faster way may fail, or give something else: kernels are compiled on the machine that they run on, and what
torch can do depends on its version. So each is tried against the plain model first. Does not know what the ways are.
"""

import logging
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from common.model.attention import packed_attention
from vision_service.model.encoder import PatchEncoder, PixtralVisionModel, grid_positions
from vision_service.model.segment_attention import SegmentAttention

_log = logging.getLogger(__name__)

_LIMIT = 0.25
"""How far a row of features may be from the plain model's, over its length: a few times what rounding does."""
_GRIDS = ((3, 5), (1, 1), (9, 8))
_LENGTHS = (15, 0, 1, 72)


@torch.inference_mode()
def choose_encoder(
    model: PixtralVisionModel, make: Callable[[PixtralVisionModel], PatchEncoder], *, dtype: torch.dtype
) -> PatchEncoder:
    """What `make` makes of a model in `dtype`, or with a warning the model, where it fails or gives something else."""
    try:
        encoder = make(model)
        got, want = (_features(each, model, dtype) for each in (encoder, model))
        distance = ((got - want).norm(dim=1) / want.norm(dim=1)).max().item()
    except Exception:  # Triton's errors, torch's, and those of a compiler that is not there.
        _log.warning("torch alone computes the encoder: its kernels cannot be had", exc_info=True)
        return model
    if not distance <= _LIMIT:
        _log.warning("torch alone computes the encoder: its kernels give other numbers", extra={"distance": distance})
        return model
    return encoder


@torch.inference_mode()
def checked_attention(
    attention: SegmentAttention, *, num_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> SegmentAttention | None:
    """An attention, or with a warning None where it fails or gives something else than one launch a picture."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, sum(_LENGTHS), num_heads, head_dim)
    query, key, value = torch.randn(shape, generator=generator).to(device, dtype).unbind()
    starts = torch.tensor([*accumulate(_LENGTHS, initial=0)], dtype=torch.int32).to(device)
    scale = head_dim**-0.5
    lengths = [length for length in _LENGTHS if length]
    try:
        got = attention(query, key, value, starts=starts, longest=max(_LENGTHS), scale=scale)
        want = packed_attention(query, key, value, lengths=lengths, causal=False, scale=scale)
        distance = (got.float() - want.float()).abs().max().item()
    except Exception:  # As above.
        _log.warning("attention by segments cannot be had", exc_info=True)
        return None
    if not distance <= 8 * torch.finfo(dtype).eps:
        _log.warning("attention by segments gives other numbers", extra={"distance": distance})
        return None
    return attention


def _features(encoder: PatchEncoder, model: PixtralVisionModel, dtype: torch.dtype) -> Tensor:
    """Features as fp32 of a few patches of noise, in pictures of several sizes."""
    weight, lengths = model.patch_conv.weight, [height * width for height, width in _GRIDS]
    patches = torch.randn(sum(lengths), weight[0].numel(), generator=torch.Generator().manual_seed(0))

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = model.config.vision_attention_multiplier
        return packed_attention(query, key, value, lengths=lengths, causal=False, scale=scale)

    return encoder(patches.to(weight.device, dtype), *grid_positions(_GRIDS, weight.device), attend).float()
