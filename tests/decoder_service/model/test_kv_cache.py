"""Blocks are copied and cleared in every layer, in every type, and no others with them."""

import pytest
import torch

from decoder_service.model.fp8 import FP8
from decoder_service.model.kv_cache import KVCache
from tests.small_configs import SMALL_TEXT


def numbered(dtype: torch.dtype) -> KVCache:
    """Every block of every layer holds its own number."""
    cache = KVCache(SMALL_TEXT, num_blocks=5, block_size=4, device=torch.device("cpu"), dtype=dtype)
    for blocks in (*cache.key_blocks, *cache.value_blocks):
        blocks.copy_(torch.arange(1, 6)[:, None, None, None].expand(blocks.shape))
    return cache


def numbers(cache: KVCache) -> list[list[float]]:
    """What the blocks of each layer's keys and values hold."""
    all_blocks = [blocks.float() for blocks in (*cache.key_blocks, *cache.value_blocks)]
    assert all(blocks.eq(blocks[:, :1, :1, :1]).all() for blocks in all_blocks)
    return [blocks[:, 0, 0, 0].tolist() for blocks in all_blocks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8])
def test_all_blocks_are_read_before_any_is_written(dtype: torch.dtype) -> None:
    cache = numbered(dtype)
    cache.copy((0, 1), (1, 3))
    assert numbers(cache) == [[1, 1, 3, 2, 5]] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8])
def test_blocks_that_are_cleared_hold_zeros(dtype: torch.dtype) -> None:
    cache = numbered(dtype)
    cache.clear([4, 1])
    assert numbers(cache) == [[1, 0, 3, 4, 0]] * 4
