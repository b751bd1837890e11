"""The Pixtral patch encoder as a module: packed patches in, image features out.

Knows weights and arithmetic. Does not know images, requests, devices or the projector (which runs in the
decoder service). Attribute names are those of a Hugging Face checkpoint below `vision_tower.`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.model.config import PixtralVisionConfig
from common.model.layers import Attend, Attention, FeedForward, RMSNorm
from common.model.rope import inverse_frequencies, rotary_2d


class EncoderLayer(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each added to its input."""

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__()
        size, eps = config.vision_hidden_size, config.vision_rms_norm_eps
        self.attention_norm = RMSNorm(size, eps)
        self.attention = Attention(
            size,
            num_heads=config.vision_num_attention_heads,
            num_key_value_heads=config.vision_num_attention_heads,
            head_dim=config.vision_head_dim,
        )
        self.ffn_norm = RMSNorm(size, eps)
        self.feed_forward = FeedForward(size, config.vision_intermediate_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, *, layer: int, attend: Attend) -> Tensor:
        """Map x [num_patches, vision_hidden_size] to the same shape."""
        x = x + self.attention(self.attention_norm(x), cos, sin, layer=layer, attend=attend)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class EncoderLayers(nn.Module):
    """The stack of layers, a module of its own because the checkpoint names it `transformer`."""

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.vision_num_hidden_layers))

    @property
    def encoder_layers(self) -> list[EncoderLayer]:
        """The layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, EncoderLayer)]


class PixtralVisionModel(nn.Module):
    """Patch encoder without a final norm: the last layer's output is the image features."""

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__()
        self.config = config
        size, patch = config.vision_hidden_size, config.patch_size
        self.patch_conv = nn.Conv2d(config.num_channels, size, kernel_size=patch, stride=patch, bias=False)
        self.ln_pre = RMSNorm(size, config.vision_rms_norm_eps)
        self.transformer = EncoderLayers(config)

    def forward(self, patches: Tensor, rows: Tensor, columns: Tensor, attend: Attend) -> Tensor:
        """Encode the patches of any number of images, packed one after another.

        `patches` [num_patches, num_channels * patch_size ** 2] hold normalised pixels in (channel, row,
        column) order; `rows` and `columns` [num_patches] are each patch's place in its own image;
        `attend` keeps the images apart. Returns [num_patches, vision_hidden_size].
        """
        # A convolution whose stride is its kernel is one product over flattened patches.
        x: Tensor = self.ln_pre(functional.linear(patches, self.patch_conv.weight.flatten(1)))
        freqs = inverse_frequencies(self.config.vision_head_dim, self.config.vision_rope_theta, patches.device)
        cos, sin = rotary_2d(rows, columns, freqs, patches.dtype)
        for index, layer in enumerate(self.transformer.layers):
            x = layer(x, cos, sin, layer=index, attend=attend)
        return x


class PatchEncoder(Protocol):
    """Whatever computes what `PixtralVisionModel` does; its `forward` says what it takes."""

    config: PixtralVisionConfig

    def __call__(self, patches: Tensor, rows: Tensor, columns: Tensor, attend: Attend) -> Tensor:
        """Features of packed patches."""
        ...


def grid_positions(grids: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every patch of the grids (height, width), packed in raster order: two [num_patches]."""
    rows = [torch.arange(height, device=device).repeat_interleave(width) for height, width in grids]
    columns = [torch.arange(width, device=device).repeat(height) for height, width in grids]
    return torch.cat(rows), torch.cat(columns)
