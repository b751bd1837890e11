"""What a decoder runs with: the model's shape, and what the user and the device decide about it.

Knows the relations between them. Does not know settings, memory or tensors' values. The shape comes from the
checkpoint alone (see `common/model/config.py`); this adds type, device, longest sequence and the KV cache's layout.
"""

from dataclasses import dataclass

import torch

from common.model.config import MistralConfig

MAX_TRAINED_LEN = 131_072
"""Published configs state position limits far beyond the length that the models were trained for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheParams:
    """Layout of the KV cache."""

    dtype: torch.dtype
    """Type of keys and values."""
    num_layers: int
    num_key_value_heads: int
    head_dim: int
    block_size: int
    """Tokens in a block."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.num_layers * self.num_key_value_heads * self.head_dim * self.dtype.itemsize

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block over all layers."""
        return self.bytes_per_token * self.block_size


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that is fixed about a running decoder."""

    text: MistralConfig
    """Shape of the decoder."""
    dtype: torch.dtype
    """Type of weights, and of activations unless kernels keep them in more bits."""
    device: torch.device
    max_seq_len: int
    """Most tokens of a request, prompt and completion together."""
    kv_params: KVCacheParams


def make_run_config(
    text: MistralConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_seq_len: int | None,
    block_size: int,
    kv_dtype: torch.dtype | None = None,
) -> RunConfig:
    """Join a model's shape with what the user wants; keys and values are of the weights' type where unset.

    Raises ValueError where the two do not fit.
    """
    return RunConfig(
        text=text,
        dtype=dtype,
        device=device,
        max_seq_len=bounded_max_seq_len(max_seq_len, text.max_position_embeddings),
        kv_params=KVCacheParams(
            dtype=kv_dtype or dtype,
            num_layers=text.num_hidden_layers,
            num_key_value_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            block_size=block_size,
        ),
    )


def bounded_max_seq_len(wanted: int | None, bound: int) -> int:
    """The user's length within the model's, which is also what a user without a wish gets, within reason.

    Raises ValueError naming both.
    """
    if wanted is not None and wanted > bound:
        raise ValueError(f"--max-model-len {wanted} is over the model's {bound} (max_position_embeddings)")
    return wanted or min(bound, MAX_TRAINED_LEN)
