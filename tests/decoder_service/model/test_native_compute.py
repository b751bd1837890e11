"""The kernels compute the last layer only for rows that get logits, which changes nothing that anybody reads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.checkpoint.checkpoint import open_checkpoint
from common.native.opening import open_library
from decoder_service.model.batch import ForwardBatch, PromptRows
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.native_compute import NativeCompute
from decoder_service.model.weights import DecoderModel
from tests.tiny_models import Shape, random_text_model, save

SHAPE = Shape(name="windowed", hidden=64, heads=4, kv_heads=2, head_dim=20, window=12)
NUM_BLOCKS, BLOCK_SIZE = 12, 8
LENGTHS = (21, 1, 30)
"""Of three requests, without anything computed before."""
TABLES = torch.tensor([[5, 0, 7, 5], [2, 2, 2, 2], [9, 3, 1, 8]])
NUM_ROWS = sum(LENGTHS)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_text_model(SHAPE), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("wanted", [[20, 21, 51], [51], [3, 3, 40], [51, 0, 22], [], list(range(NUM_ROWS))], ids=str)
def test_rows_that_get_logits_are_the_same_bits_whoever_else_gets_them(directory: Path, wanted: list[int]) -> None:
    everything, cache = _hidden(directory, list(range(NUM_ROWS)))
    some, cache_of_some = _hidden(directory, wanted)
    assert torch.equal(some[wanted], everything[wanted])
    for layer in range(len(cache.key_blocks)):
        assert torch.equal(cache_of_some.key_blocks[layer], cache.key_blocks[layer])
        assert torch.equal(cache_of_some.value_blocks[layer], cache.value_blocks[layer])


def test_other_rows_are_left_out_unless_a_prompt_is_judged_by_them(directory: Path) -> None:
    everything, _ = _hidden(directory, list(range(NUM_ROWS)))
    left_out, _ = _hidden(directory, [51])
    assert not torch.equal(left_out[:51], everything[:51])
    judged = PromptRows(request_id="judged", first=0, token_ids=tuple(range(20)), num_top=0)
    with_them, _ = _hidden(directory, [51], judged)
    assert torch.equal(with_them, everything)


def _hidden(directory: Path, wanted: list[int], *prompt_rows: PromptRows) -> tuple[Tensor, KVCache]:
    model = DecoderModel.load(open_checkpoint(directory), device=torch.device("cpu"), dtype=torch.float32)
    cache = KVCache(
        model.config, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, device=torch.device("cpu"), dtype=torch.float32
    )
    cache.clear(range(NUM_BLOCKS))
    compute = NativeCompute(model, cache, open_library(threads=2))
    positions = [torch.arange(length) for length in LENGTHS]
    slots = [
        table[each // BLOCK_SIZE] * BLOCK_SIZE + each % BLOCK_SIZE
        for table, each in zip(TABLES, positions, strict=True)
    ]
    token_ids = torch.arange(NUM_ROWS) * 7 % 90 + 3
    forward = ForwardBatch(
        token_ids=token_ids,
        positions=torch.cat(positions),
        slot_mapping=torch.cat(slots),
        block_tables=TABLES,
        query_lengths=LENGTHS,
        seq_lens=LENGTHS,
        seq_lens_there=torch.tensor(LENGTHS),
        logits_indices=torch.tensor(wanted, dtype=torch.long),
        image_indices=token_ids[:0],
        image_rows=(),
        prompt_rows=prompt_rows,
    )
    return compute.hidden(compute.embed(token_ids), forward), cache
