"""An adapter's changes as the decoder's joined products want them: queries, keys and values as one, gate and up as one.

Knows tensors and which products are joined. Does not know how they are computed.
"""

from collections.abc import Mapping, Sequence

import torch

from common.model.config import MistralConfig
from decoder_service.adapters.adapter import Adapter, LowRank

QKV, OUTPUT, GATE_UP, DOWN = PRODUCTS = ("qkv", "output", "gate_up", "down")
"""Names of the joined products."""


def joined_changes(adapter: Adapter, config: MistralConfig) -> dict[tuple[int, str], LowRank]:
    """By layer and joined product; no entry where the adapter leaves one alone."""
    parts = _parts(config)
    found: dict[tuple[int, str], LowRank] = {}
    for layer in range(config.num_hidden_layers):
        for product in PRODUCTS:
            change = _join(layer, parts[product], adapter.changes)
            if change is not None:
                found[layer, product] = change
    return found


def _parts(config: MistralConfig) -> dict[str, list[tuple[str, int]]]:
    """Of each product the modules that it joins, in order, with the width of each."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return {
        QKV: [("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)],
        OUTPUT: [("self_attn.o_proj", config.hidden_size)],
        GATE_UP: [("mlp.gate_proj", config.feed_forward_length), ("mlp.up_proj", config.feed_forward_length)],
        DOWN: [("mlp.down_proj", config.hidden_size)],
    }


def _join(layer: int, parts: Sequence[tuple[str, int]], changes: Mapping[tuple[int, str], LowRank]) -> LowRank | None:
    """What goes down stands below one another, what goes up diagonally: zeros where a part's rank is not another's."""
    there = {name: changes[layer, name] for name, _ in parts if (layer, name) in changes}
    if not there:
        return None
    down = torch.cat([change.down for change in there.values()])
    up = down.new_zeros(sum(width for _, width in parts), len(down))
    row = column = 0
    for name, width in parts:
        if name in there:
            rank = there[name].up.shape[1]
            up[row : row + width, column : column + rank] = there[name].up
            column += rank
        row += width
    return LowRank(down=down, up=up)
