"""How many KV blocks fit on a device.

Knows free memory and what a step needs. Does not allocate anything.
"""

from pathlib import Path

import torch

from common.model_config import MistralConfig
from decoder_service.kv_cache import bytes_per_block


def plan_num_blocks(
    config: MistralConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    block_size: int,
    memory_fraction: float,
    max_num_batched_tokens: int,
    max_num_requests: int,
    max_model_len: int,
) -> int:
    """Blocks that the memory left after loading the weights holds, or fewer if no more can be in use.

    Raises ValueError where not even one request of `max_model_len` tokens fits.
    """
    activations = activation_bytes(
        config, dtype=dtype, max_num_batched_tokens=max_num_batched_tokens, max_num_requests=max_num_requests
    )
    room = int(free_bytes(device) * memory_fraction) - activations
    blocks_per_request = -(-max_model_len // block_size)
    num_blocks = min(
        room // bytes_per_block(config, block_size=block_size, dtype=dtype), blocks_per_request * max_num_requests
    )
    if num_blocks < blocks_per_request:
        raise ValueError(
            f"the KV cache has room for {max(num_blocks, 0)} blocks of {block_size} tokens, but one request of "
            f"{max_model_len} tokens needs {blocks_per_request}; lower --max-model-len or raise --memory-fraction"
        )
    return num_blocks


def activation_bytes(
    config: MistralConfig, *, dtype: torch.dtype, max_num_batched_tokens: int, max_num_requests: int
) -> int:
    """Upper estimate of a step's working memory: the widest layer's rows and the logits with their sort."""
    attention_width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    row = 4 * config.hidden_size + 3 * config.feed_forward_length + 3 * attention_width
    return max_num_batched_tokens * row * dtype.itemsize + max_num_requests * config.vocab_size * 4 * 6


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: on a GPU what the driver says, else the host's or the container's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        available = min(available, int(text) - int(used.read_text(encoding="ascii")))
    return available
