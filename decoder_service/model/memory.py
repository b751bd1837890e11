"""How many KV blocks fit on a device.

Knows free memory and what a step needs. Does not allocate anything.
"""

import torch

from common.model.config import MistralConfig
from common.model.devices import free_bytes
from decoder_service.model.run_config import RunConfig
from decoder_service.sampling.likelihood import PROMPT_LOGITS_ROWS


def plan_num_blocks(
    config: RunConfig,
    *,
    dtype: torch.dtype,
    memory_fraction: float,
    max_num_batched_tokens: int,
    max_num_requests: int,
    max_num_tries: int = 0,
    has_adapters: bool = False,
) -> int:
    """Blocks that the memory left after loading the weights holds, or fewer if no more can be in use.

    `dtype` is that of activations, `max_num_tries` what all requests of a step try at most, tokens.

    Raises ValueError where not even one request of `max_seq_len` tokens fits.
    """
    activations = activation_bytes(
        config.text,
        dtype=dtype,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_requests=max_num_requests,
        max_num_tries=max_num_tries,
        has_adapters=has_adapters,
    )
    room = int(free_bytes(config.device) * memory_fraction) - activations
    block_size = config.kv_params.block_size
    blocks_per_request = -(-config.max_seq_len // block_size)
    num_blocks = min(room // config.kv_params.bytes_per_block, blocks_per_request * max_num_requests)
    if num_blocks < blocks_per_request:
        raise ValueError(
            f"the KV cache has room for {max(num_blocks, 0)} blocks of {block_size} tokens, but one request of "
            f"{config.max_seq_len} tokens needs {blocks_per_request}; lower --max-model-len or raise --memory-fraction"
        )
    return num_blocks


def check_num_blocks(config: RunConfig, num_blocks: int) -> int:
    """As many blocks as were asked for. Raises ValueError where the device has no memory for them."""
    free, block = free_bytes(config.device), config.kv_params.bytes_per_block
    if num_blocks * block > free:
        raise ValueError(
            f"--num-blocks {num_blocks} needs {num_blocks * block / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are "
            f"free on {config.device}: room for {free // block}"
        )
    return num_blocks


def activation_bytes(
    config: MistralConfig,
    *,
    dtype: torch.dtype,
    max_num_batched_tokens: int,
    max_num_requests: int,
    max_num_tries: int = 0,
    has_adapters: bool = False,
) -> int:
    """Upper estimate of a step's working memory: the widest layer's rows and the logits with their sort.

    Each request and each token that is tried has a row of logits.
    """
    attention_width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    row = 4 * config.hidden_size + 3 * config.feed_forward_length + 3 * attention_width
    if has_adapters:  # What one adds to gate and up, and what is made of both.
        row += 2 * 2 * config.feed_forward_length
    # The model's logits are kept, sampling works on copies, sorted and summed up in double precision; prompts that
    # are judged follow after that.
    num_sampled = max_num_requests + max_num_tries
    logits_rows = num_sampled + max(11 * num_sampled, 3 * PROMPT_LOGITS_ROWS)
    return max_num_batched_tokens * row * dtype.itemsize + logits_rows * config.vocab_size * 4
