"""Case G3: the paged attention kernel alone, in bytes a second, beside torch's own over contiguous keys."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.models import BLOCK_SIZE, DECODER_12B, forward_batch
from decoder_service.model.cuda.layers import num_processors
from decoder_service.model.cuda.paged_attention import triton_paged_attention
from decoder_service.model.cuda.tiles import AttentionTiles, num_splits_for

_MOST_KEYS = 2**20


@torch.inference_mode()
def attention_rows(device: torch.device, ceilings: Ceilings) -> Iterator[dict[str, object]]:
    """A row per batch size and context."""
    config = DECODER_12B
    for batch in (1, 32, 128):
        for context in (1024, 4096, 16384):
            if batch * context > _MOST_KEYS:
                continue
            kernel, peer = _kernel_seconds(batch, context, device), _torch_seconds(batch, context, device)
            num_bytes = 2 * batch * context * config.num_key_value_heads * config.head_dim * 2
            yield {
                "case": f"attention {batch} x {context}",
                "us": kernel * 1e6,
                "GB/s": num_bytes / kernel / 1e9,
                "share of limit": num_bytes / kernel / ceilings.memory_bytes,
                "torch's on contiguous keys / ours": peer / kernel,
            }


def _kernel_seconds(batch: int, context: int, device: torch.device) -> float:
    config = DECODER_12B
    forward = forward_batch([1] * batch, [context] * batch, device)
    shape = (batch * context // BLOCK_SIZE + 1, BLOCK_SIZE, config.num_key_value_heads, config.head_dim)
    keys, values = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    query = torch.randn(batch, config.num_attention_heads, config.head_dim, device=device, dtype=torch.bfloat16)
    splits = num_splits_for(
        num_tiles=batch,
        num_key_value_heads=config.num_key_value_heads,
        num_processors=num_processors(device),
        max_seq_len=context,
    )
    starts = torch.arange(batch + 1, device=device, dtype=torch.int32)
    lens = torch.full((batch,), context, device=device, dtype=torch.int32)
    tiles = AttentionTiles.for_lengths([1] * batch, num_groups=1, device=device)
    return seconds(
        lambda: triton_paged_attention(
            query,
            keys,
            values,
            block_tables=forward.block_tables,
            query_starts=starts,
            seq_lens=lens,
            tiles=tiles,
            num_splits=splits,
            scale=config.attention_multiplier,
            sliding_window=None,
        )
    )


def _torch_seconds(batch: int, context: int, device: torch.device) -> float:
    config = DECODER_12B

    def random(heads: int, length: int) -> torch.Tensor:
        return torch.randn(batch, heads, length, config.head_dim, device=device, dtype=torch.bfloat16)

    query = random(config.num_attention_heads, 1)
    keys, values = (random(config.num_key_value_heads, context) for _ in range(2))
    return seconds(lambda: functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True))
