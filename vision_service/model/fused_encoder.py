"""The patch encoder as a GPU runs it: a few Triton kernels between joined products, in place of several of torch's.

Knows the modules of `encoder` and gives what they give. Does not know images or devices. Between two products torch
would read and write every row a dozen times, which for pictures takes longer than the products.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from common.model.fused_rows import add_rms_norm, silu_and_multiply
from common.model.joining import join_parameters
from common.model.layers import Attend
from common.model.rope import inverse_frequencies
from vision_service.model.encoder import EncoderLayer, PixtralVisionModel


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """Weights of one layer."""

    attention_norm: Tensor
    qkv: Tensor
    """[3 * num_heads * head_dim, width]"""
    o: Tensor
    ffn_norm: Tensor
    gate_up: Tensor
    """[2 * intermediate, width], the gate first"""
    down: Tensor

    @staticmethod
    def of(layer: EncoderLayer) -> "_Weights":
        attention, feed_forward = layer.attention, layer.feed_forward
        return _Weights(
            attention_norm=layer.attention_norm.weight.detach(),
            qkv=join_parameters([attention.q_proj, attention.k_proj, attention.v_proj], "weight"),
            o=attention.o_proj.weight.detach(),
            ffn_norm=layer.ffn_norm.weight.detach(),
            gate_up=join_parameters([feed_forward.gate_proj, feed_forward.up_proj], "weight"),
            down=feed_forward.down_proj.weight.detach(),
        )


class FusedEncoder:
    """A `PatchEncoder` over the weights of a model."""

    def __init__(self, model: PixtralVisionModel) -> None:
        """Join the model's weights; its own become views of the joined ones, so nothing is there twice."""
        self.config = model.config
        self._patch_weight = model.patch_conv.weight.detach().flatten(1)
        self._first_norm = model.ln_pre.weight.detach()
        self._weights = [_Weights.of(layer) for layer in model.transformer.encoder_layers]

    def __call__(self, patches: Tensor, rows: Tensor, columns: Tensor, attend: Attend) -> Tensor:
        """See `PatchEncoder`."""
        # Triton launches on the thread's own device, which need not be the one that the tensors are on.
        with torch.cuda.device(patches.device) if patches.is_cuda else nullcontext():
            return self._features(patches, rows, columns, attend)

    def _features(self, patches: Tensor, rows: Tensor, columns: Tensor, attend: Attend) -> Tensor:
        eps = self.config.vision_rms_norm_eps
        cos, sin = self._turns(rows, columns)
        x = add_rms_norm(functional.linear(patches, self._patch_weight), None, self._first_norm, eps=eps)
        delta: Tensor | None = None
        for layer, weights in enumerate(self._weights):
            normed = add_rms_norm(x, delta, weights.attention_norm, eps=eps)
            qkv = functional.linear(normed, weights.qkv).unflatten(1, (3, -1, self.config.vision_head_dim))
            rotate(qkv, cos, sin)
            delta = functional.linear(attend(layer, *qkv.unbind(1)).flatten(1), weights.o)
            normed = add_rms_norm(x, delta, weights.ffn_norm, eps=eps)
            delta = functional.linear(silu_and_multiply(functional.linear(normed, weights.gate_up)), weights.down)
        return x if delta is None else x + delta

    def _turns(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines in fp32 [num_patches, head_dim / 2] each; see `rotary_2d`."""
        freqs = inverse_frequencies(self.config.vision_head_dim, self.config.vision_rope_theta, rows.device)
        by_row, by_column = rows.float()[:, None] * freqs[None, 0::2], columns.float()[:, None] * freqs[None, 1::2]
        angles = torch.cat((by_row, by_column), dim=-1)
        return angles.cos(), angles.sin()


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate queries and keys of qkv [num_patches, 3, num_heads, head_dim] in place.

    Takes cos and sin in fp32 [num_patches, head_dim / 2].
    """
    num_heads, half = qkv.shape[2], qkv.shape[3] // 2
    _rotate[(len(qkv),)](
        qkv,
        cos,
        sin,
        HEADS=2 * num_heads,
        ROW=qkv.stride(0),
        HALF=half,
        BLOCK_HEADS=triton.next_power_of_2(2 * num_heads),
        BLOCK=triton.next_power_of_2(half),
        num_warps=4,
    )


@triton.jit
def _rotate(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    HEADS: tl.constexpr,
    ROW: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """All heads of one patch, queries and then keys."""
    patch = tl.program_id(0).to(tl.int64)
    heads, dims = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK)
    is_dim = dims < HALF
    is_in = (heads < HEADS)[:, None] & is_dim[None, :]
    c = tl.load(cos + patch * HALF + dims, mask=is_dim, other=0.0)[None, :]
    s = tl.load(sin + patch * HALF + dims, mask=is_dim, other=0.0)[None, :]
    at = qkv + patch * ROW + heads[:, None] * 2 * HALF + dims[None, :]
    x = tl.load(at, mask=is_in, other=0.0).to(tl.float32)
    y = tl.load(at + HALF, mask=is_in, other=0.0).to(tl.float32)
    tl.store(at, (x * c - y * s).to(qkv.dtype.element_ty), mask=is_in)
    tl.store(at + HALF, (y * c + x * s).to(qkv.dtype.element_ty), mask=is_in)
