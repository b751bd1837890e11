"""Passes that warm a service up are those of real batches, and leave alone what anybody may own."""

import torch

from decoder_service.model.batch import ForwardBatch
from decoder_service.model.compute import TorchCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.mistral import MistralForCausalLM
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.weights import DecoderModel
from tests.small_configs import SMALL_TEXT

CPU = torch.device("cpu")


class Noting(TorchCompute):
    """Keeps the lengths of what it computes."""

    def __init__(self, model: DecoderModel, kv_cache: KVCache) -> None:
        super().__init__(model, kv_cache)
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def hidden(self, embeds: torch.Tensor, forward: ForwardBatch) -> torch.Tensor:
        self.seen.append((forward.query_lengths, forward.seq_lens))
        return super().hidden(embeds, forward)


def test_idle_tokens_and_prompts_write_to_the_first_block_alone_and_all_they_write_are_numbers() -> None:
    decoder = MistralForCausalLM(SMALL_TEXT)
    torch.nn.init.normal_(decoder.model.embed_tokens.weight)  # It is made without values.
    model = DecoderModel(config=SMALL_TEXT, device=CPU, dtype=torch.float32, decoder=decoder, projector=None)
    cache = KVCache(SMALL_TEXT, num_blocks=9, block_size=4, device=CPU, dtype=torch.float32)
    compute = Noting(model, cache)
    runner = DecoderRunner(model, cache, compute)
    runner.run_idle(3)
    runner.run_idle_prompt(6, 6)
    runner.run_idle_prompt(5, 33)
    assert compute.seen == [((1, 1, 1), (1, 1, 1)), ((6,), (6,)), ((5,), (33,))]
    for blocks in (*cache.key_blocks, *cache.value_blocks):
        assert blocks[0].isfinite().all()
        assert blocks[0].any()
        assert not blocks[1:].any()
