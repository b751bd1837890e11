"""What an adapter is: low-rank changes of some of the decoder's products.

Knows tensors by layer and module. Does not know files (see `adapter_files`) or how a step adds the changes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""Modules of a layer that can be changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """A change of one product: y += (x @ down.T) @ up.T."""

    down: Tensor
    """[rank, in_features]."""
    up: Tensor
    """[out_features, rank], with the adapter's scale in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The changes of one adapter, loaded."""

    name: str
    """What requests call it."""
    rank: int
    """The largest of its changes."""
    digest: bytes
    """SHA-256, 32 bytes, over the changes: equal for equal changes, whatever name or files they came under."""
    changes: Mapping[tuple[int, str], LowRank]
    """By layer and one of MODULES; what is not in it stays as the model has it."""


def digest_of(changes: Mapping[tuple[int, str], LowRank]) -> bytes:
    """SHA-256 over where the changes belong, their types, shapes and values; 32 bytes."""
    digest = hashlib.sha256()
    for (layer, module), change in sorted(changes.items(), key=lambda item: item[0]):
        for tensor in (change.down, change.up):
            digest.update(f"{layer}|{module}|{tensor.dtype}|{list(tensor.shape)}|".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
