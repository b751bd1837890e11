"""Rotary position embeddings, in the half-split layout that Hugging Face checkpoints use.

Knows angles and the rotation. Does not know which positions a token has. Source: Su et al.,
"RoFormer" (arXiv 2104.09864); the two-axis form is Pixtral's (arXiv 2410.07073, section 2.2).
"""

import torch
from torch import Tensor


def inverse_frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """`theta ** (-2i / head_dim)` for each pair i, as fp32 [head_dim / 2].

    Always fp32: at theta = 1e9 the smallest value is 1.4e-9, which bf16 angles would ruin.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / (theta**exponents)


def rotary_1d(positions: Tensor, inverse_freqs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines for text positions.

    Takes positions [num_tokens] and returns two tensors [num_tokens, head_dim] in `dtype`; the angles are
    fp32 up to the last cast, as in the reference.
    """
    angles = positions.float()[:, None] * inverse_freqs[None, :]
    return _cos_sin(angles, dtype)


def rotary_2d(rows: Tensor, columns: Tensor, inverse_freqs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines for patch positions: even frequencies turn with the row, odd ones with the column.

    Takes patch rows and columns [num_patches], counted from 0 within their image, and returns two tensors
    [num_patches, head_dim]. Computed, not looked up, so that no grid is too large for a table.
    """
    angles = torch.cat(
        (
            rows.float()[:, None] * inverse_freqs[None, 0::2],
            columns.float()[:, None] * inverse_freqs[None, 1::2],
        ),
        dim=-1,
    )
    return _cos_sin(angles, dtype)


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate states [num_tokens, num_heads, head_dim] by cos and sin [num_tokens, head_dim]."""
    first, second = states.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return states * cos[:, None, :] + rotated * sin[:, None, :]


def _cos_sin(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos().to(dtype), doubled.sin().to(dtype)
