"""A model with the names and shapes by which gpt-fast's is used, for there is no package of it.

As there: heads as wide together as a row unless somebody changes `dim` afterwards, pairs of neighbours that turn, one
product for queries, keys and values, and caches that hold every position.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class ModelArgs:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    dim: int
    intermediate_size: int
    n_local_heads: int
    rope_base: float
    norm_eps: float
    head_dim: int = field(init=False)

    def __post_init__(self) -> None:
        self.head_dim = self.dim // self.n_head


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.n_head, self.n_local_heads, self.head_dim, self.dim = (
            args.n_head,
            args.n_local_heads,
            args.head_dim,
            args.dim,
        )
        self.wqkv = nn.Linear(args.dim, (args.n_head + 2 * args.n_local_heads) * args.head_dim, bias=False)
        self.wo = nn.Linear(args.dim, args.dim, bias=False)
        self.keys = self.values = torch.empty(0)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        width = self.n_local_heads * self.head_dim
        query, key, value = self.wqkv(x[0]).split([self.dim, width, width], dim=-1)
        query, key = (_turned(each.unflatten(1, (-1, self.head_dim)), turns) for each in (query, key))
        self.keys[positions], self.values[positions] = key, value.unflatten(1, (-1, self.head_dim))
        q, k, v = (each.transpose(0, 1)[None] for each in (query, self.keys, self.values))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out: Tensor = self.wo(mixed[0].transpose(0, 1).reshape(1, -1, self.dim))
        return out


class FeedForward(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.w1 = nn.Linear(args.dim, args.intermediate_size, bias=False)
        self.w2 = nn.Linear(args.intermediate_size, args.dim, bias=False)
        self.w3 = nn.Linear(args.dim, args.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(args), FeedForward(args)
        self.attention_norm, self.ffn_norm = Norm(args.dim, args.norm_eps), Norm(args.dim, args.norm_eps)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turns, mask, positions)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Transformer(nn.Module):
    def __init__(self, config: ModelArgs) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = Norm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def setup_caches(self, max_batch_size: int, max_seq_length: int) -> None:
        assert max_batch_size == 1
        head_dim = self.config.dim // self.config.n_head
        shape = (max_seq_length, self.config.n_local_heads, head_dim)
        for attention in self.modules():
            if not isinstance(attention, Attention):
                continue
            attention.keys, attention.values = torch.zeros(shape), torch.zeros(shape)
        frequencies = self.config.rope_base ** -(torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.outer(torch.arange(max_seq_length), frequencies)
        self.turns = torch.polar(torch.ones_like(angles), angles)
        self.mask = torch.tril(torch.ones(max_seq_length, max_seq_length, dtype=torch.bool))

    def forward(self, idx: Tensor, input_pos: Tensor) -> Tensor:
        x = self.tok_embeddings(idx)
        for layer in self.layers:
            x = layer(x, self.turns[input_pos], self.mask[input_pos], input_pos)
        logits: Tensor = self.output(self.norm(x))
        return logits


def _turned(heads: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(heads.unflatten(2, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns[:, None, :]).flatten(2)
