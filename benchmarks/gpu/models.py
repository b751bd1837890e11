"""Pixtral-12B's exact shape with random weights, made on the device, and batches to run through it."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.pixtral_12b import DECODER_12B, ENCODER_400M
from common.model.config import MistralConfig, PixtralVisionConfig
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.cuda.attention import AttentionShape
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.mistral import MistralForCausalLM
from decoder_service.model.weights import DecoderModel
from vision_service.model.encoder import PixtralVisionModel

BLOCK_SIZE = 16

DECODER_1B = replace(
    DECODER_12B, hidden_size=2048, head_dim=64, num_hidden_layers=16, feed_forward_length=8192, vocab_size=32768
)
"""Small enough that what the host does between two steps shows."""


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


def attention_shape(dtype: torch.dtype, keys: torch.dtype, *, window: int | None = None) -> AttentionShape:
    """Of the decoder's attention, by the types of queries and of keys and values."""
    return AttentionShape(
        num_heads=DECODER_12B.num_attention_heads,
        num_key_value_heads=DECODER_12B.num_key_value_heads,
        head_dim=DECODER_12B.head_dim,
        block_size=BLOCK_SIZE,
        scale=DECODER_12B.attention_multiplier,
        sliding_window=window,
        dtype=dtype,
        kv_dtype=keys,
    )


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
