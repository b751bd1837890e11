"""The transformer layers that the patch encoder and the decoder share.

Knows weights and arithmetic on packed rows [num_tokens, hidden_size]. Does not know caches, batches or
masks: what a row may see is decided by the `Attend` function that the caller passes in. Attribute names
are those of Hugging Face checkpoints, so that loading needs no map.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.model.rope import apply_rotary


class Attend(Protocol):
    """Mixes the rows of one layer.

    Takes the layer's index, query [num_tokens, num_heads, head_dim] and key and value
    [num_tokens, num_key_value_heads, head_dim]; returns [num_tokens, num_heads, head_dim].
    """

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attention output for every query row."""
        ...


class Multiply(Protocol):
    """Computes one product of a layer, told the layer's index and the module's name in it."""

    def __call__(self, layer: int, product: str, linear: nn.Module, x: Tensor, /) -> Tensor:
        """Map x [num_tokens, in_features] to [num_tokens, out_features]."""
        ...


def plainly(_layer: int, _product: str, linear: nn.Module, x: Tensor, /) -> Tensor:
    """`Multiply` with the weights and nothing else."""
    y: Tensor = linear(x)
    return y


class RMSNorm(nn.Module):
    """Root-mean-square norm: the mean is taken in fp32, the weight applied in the input's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of x [..., size]."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class FeedForward(nn.Module):
    """Gated feed-forward: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor, *, layer: int = 0, multiply: Multiply = plainly) -> Tensor:
        """Map x [num_tokens, hidden_size] to the same shape."""
        gate = multiply(layer, "mlp.gate_proj", self.gate_proj, x)
        gated = functional.silu(gate) * multiply(layer, "mlp.up_proj", self.up_proj, x)
        return multiply(layer, "mlp.down_proj", self.down_proj, gated)


class Attention(nn.Module):
    """Grouped-query attention without biases; with as many key-value heads as heads it is multi-head."""

    def __init__(self, hidden_size: int, *, num_heads: int, num_key_value_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, layer: int, attend: Attend, multiply: Multiply = plainly
    ) -> Tensor:
        """Map x [num_tokens, hidden_size] to the same shape; cos and sin are [num_tokens, head_dim]."""
        query = self._heads(multiply(layer, "self_attn.q_proj", self.q_proj, x))
        key = self._heads(multiply(layer, "self_attn.k_proj", self.k_proj, x))
        value = self._heads(multiply(layer, "self_attn.v_proj", self.v_proj, x))
        mixed = attend(layer, apply_rotary(query, cos, sin), apply_rotary(key, cos, sin), value)
        return multiply(layer, "self_attn.o_proj", self.o_proj, mixed.flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads
