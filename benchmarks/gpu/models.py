"""Pixtral-12B's exact shape with random weights, made on the device, and batches to run through it."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from common.model.config import MistralConfig, PixtralVisionConfig
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.mistral import MistralForCausalLM
from decoder_service.model.weights import DecoderModel
from vision_service.model.encoder import PixtralVisionModel

BLOCK_SIZE = 16

DECODER_12B = MistralConfig(
    hidden_size=5120,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    num_hidden_layers=40,
    feed_forward_length=14336,
    vocab_size=131072,
    rms_norm_eps=1e-5,
    rope_theta=1e9,
    max_position_embeddings=131072,
)

DECODER_1B = replace(
    DECODER_12B, hidden_size=2048, head_dim=64, num_hidden_layers=16, feed_forward_length=8192, vocab_size=32768
)
"""Small enough that what the host does between two steps shows."""

ENCODER_400M = PixtralVisionConfig(
    patch_size=16,
    image_size=1024,
    num_channels=3,
    vision_hidden_size=1024,
    vision_num_attention_heads=16,
    vision_num_hidden_layers=24,
    vision_intermediate_size=4096,
    vision_head_dim=64,
    vision_rope_theta=1e4,
)


def random_decoder(config: MistralConfig, device: torch.device, dtype: torch.dtype) -> DecoderModel:
    """A decoder with weights that keep its activations near 1."""
    with torch.device("meta"):
        decoder = MistralForCausalLM(config)
    decoder.to(dtype).to_empty(device=device)
    randomise(decoder)
    return DecoderModel(config=config, decoder=decoder, projector=None, device=device, dtype=dtype)


def random_encoder(
    device: torch.device, config: PixtralVisionConfig = ENCODER_400M, dtype: torch.dtype = torch.bfloat16
) -> PixtralVisionModel:
    """An encoder with such weights."""
    with torch.device("meta"):
        model = PixtralVisionModel(config)
    model.to(dtype).to_empty(device=device)
    randomise(model)
    return model


def randomise(module: torch.nn.Module) -> None:
    """Fill every weight, on its device, with numbers from one fixed seed."""
    first = next(module.parameters())
    generator = torch.Generator(device=first.device).manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)


def weight_bytes(config: MistralConfig, dtype: torch.dtype, *, layers: torch.dtype | None = None) -> int:
    """Bytes of weights that a decode step reads: all but the embedding table, of which it reads a few rows.

    The layers' weights may be of another type than the head's.
    """
    attention = config.hidden_size * config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    layer = attention + 3 * config.hidden_size * config.feed_forward_length
    in_layers = config.num_hidden_layers * layer * (layers or dtype).itemsize
    return in_layers + config.vocab_size * config.hidden_size * dtype.itemsize


def key_value_bytes(config: MistralConfig, num_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of so many tokens."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * num_tokens * dtype.itemsize


def prompt_flops(config: MistralConfig, length: int) -> float:
    """Operations of the layers over a prompt: products, and attention to what is before each token."""
    in_layers = weight_bytes(config, torch.bfloat16) // 2 - config.vocab_size * config.hidden_size
    attention = 2 * length**2 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return float(2 * in_layers * length + attention)


def forward_batch(query_lengths: Sequence[int], seq_lens: Sequence[int], device: torch.device) -> ForwardBatch:
    """Requests of these new and whole lengths, each in scattered blocks of its own; block 0 stays free."""
    num_blocks = [-(-length // BLOCK_SIZE) for length in seq_lens]
    order = (torch.randperm(sum(num_blocks), generator=torch.Generator().manual_seed(0)) + 1).tolist()
    tables = [[order.pop() for _ in range(count)] for count in num_blocks]
    positions = [
        place for new, length in zip(query_lengths, seq_lens, strict=True) for place in range(length - new, length)
    ]
    owners = [index for index, new in enumerate(query_lengths) for _ in range(new)]
    slots = [
        tables[owner][place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
        for owner, place in zip(owners, positions, strict=True)
    ]
    longest = max(num_blocks)

    def tensor(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    ends = torch.tensor(query_lengths).cumsum(0) - 1
    return ForwardBatch(
        token_ids=tensor([place % 1000 for place in positions]),
        positions=tensor(positions),
        slot_mapping=tensor(slots),
        block_tables=tensor([table + table[:1] * (longest - len(table)) for table in tables]),
        query_lengths=tuple(query_lengths),
        seq_lens=tuple(seq_lens),
        seq_lens_there=tensor(seq_lens),
        logits_indices=tensor(ends.tolist()),
        image_indices=tensor([]),
        image_rows=(),
    )


def kv_cache_for(model: DecoderModel, num_tokens: int, dtype: torch.dtype | None = None) -> KVCache:
    """A cache with room for so many tokens, of the model's type where no other is given, filled with noise."""
    cache = KVCache(
        model.config,
        num_blocks=-(-num_tokens // BLOCK_SIZE) + 300,
        block_size=BLOCK_SIZE,
        device=model.device,
        dtype=dtype or model.dtype,
    )
    for blocks in (*cache.key_blocks, *cache.value_blocks):
        blocks.copy_(torch.randn_like(blocks, dtype=model.dtype))
    return cache


def greedy_step(compute: CudaCompute, forward: ForwardBatch) -> torch.Tensor:
    """One whole step: embed, layers, head, argmax; token ids [num_requests]."""
    hidden = compute.hidden(compute.embed(forward.token_ids), forward)
    return compute.logits(hidden[forward.logits_indices]).argmax(dim=-1)
