"""What the kernels leave out, of the last layer's rows or of weights' bits, changes nothing that anybody reads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.checkpoint.checkpoint import open_checkpoint
from common.model.weight_types import Matrices, WeightTypes
from common.native import weights
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


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_checkpoint_in_bfloat16_gives_the_same_in_half_the_memory(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, but for tiles, which add up in another order."""
    directory = save(random_text_model(replace(SHAPE, tied=tied)).bfloat16(), tmp_path)
    halves, cache_of_halves = _hidden(directory, [20, 51], matrices=Matrices.STORED)
    packed_later, _ = _hidden(directory, [20, 51])
    monkeypatch.setattr(weights, "_in_halves", lambda *_: None)
    whole, cache = _hidden(directory, [20, 51])
    assert torch.equal(halves[[20, 51]], packed_later[[20, 51]])
    tolerance = 1e-5 if open_library(threads=1).has_tiles else 0.0
    torch.testing.assert_close(halves[[20, 51]], whole[[20, 51]], atol=tolerance, rtol=tolerance)
    for mine, its in zip(cache_of_halves.value_blocks, cache.value_blocks, strict=True):
        torch.testing.assert_close(mine, its, atol=tolerance, rtol=tolerance)


def test_matrices_stay_in_bfloat16_and_nothing_else_does(tmp_path: Path) -> None:
    directory = save(random_text_model(SHAPE).bfloat16(), tmp_path)
    model = _load(directory, matrices=Matrices.STORED)
    kinds = {(tensor.ndim, tensor.dtype) for tensor in model.decoder.state_dict().values()}
    assert kinds == {(1, torch.float32), (2, torch.bfloat16)}
    compute = _compute(model)[0]
    assert compute.name.endswith("bfloat16 weights")
    whole = _load(save(random_text_model(SHAPE), tmp_path / "whole"), matrices=Matrices.STORED)
    assert not _compute(whole)[0].name.endswith("bfloat16 weights")


@pytest.mark.parametrize("matrices", [Matrices.ALIKE, Matrices.STORED])
def test_a_long_prompt_is_the_same_bits_by_one_thread_and_by_several(matrices: Matrices, tmp_path: Path) -> None:
    """Where there are rows enough each thread takes some of them alone."""
    model = random_text_model(SHAPE)
    directory = save(model.bfloat16() if matrices is Matrices.STORED else model, tmp_path)
    rows = torch.arange(300)
    forward = ForwardBatch(
        token_ids=rows * 7 % 90 + 3,
        positions=rows,
        slot_mapping=rows,
        block_tables=torch.arange(38)[None],
        query_lengths=(len(rows),),
        seq_lens=(len(rows),),
        seq_lens_there=torch.tensor([len(rows)]),
        logits_indices=rows,
        image_indices=rows[:0],
        image_rows=(),
    )
    found = []
    for threads in (1, 2, 3):
        compute, cache = _compute(_load(directory, matrices=matrices), threads=threads, num_blocks=38)
        found.append((compute.hidden(compute.embed(forward.token_ids), forward), *cache.key_blocks))
    for other in found[1:]:
        assert all(torch.equal(mine, its) for mine, its in zip(found[0], other, strict=True))


def test_keys_and_values_in_bfloat16_are_the_nearest_ones_of_those_in_float32(directory: Path) -> None:
    """Those of the first layer, which depend on no others; what is read again differs by their rounding at most."""
    exact, cache = _hidden(directory, [20, 51])
    found, rough = _hidden(directory, [20, 51], kv_dtype=torch.bfloat16)
    assert torch.equal(rough.key_blocks[0], cache.key_blocks[0].bfloat16())
    assert torch.equal(rough.value_blocks[0], cache.value_blocks[0].bfloat16())
    error = (found - exact)[[20, 51]].norm() / exact[[20, 51]].norm()
    assert 1e-4 < error < 4e-3


@pytest.mark.parametrize("head_dim", [20, 32, 44, 64])
def test_where_all_is_rounded_keys_and_values_may_be_stored_so(head_dim: int, tmp_path: Path) -> None:
    """Numbers of 16 bits go into tiles as they lie, those of 32 are rounded on their way there."""
    directory = save(random_text_model(replace(SHAPE, head_dim=head_dim)), tmp_path)
    found, wanted = (
        _hidden(directory, [20, 51], matrices=Matrices.ROUNDED, kv_dtype=dtype, rounds=True)[0][[20, 51]]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert (found - wanted).norm() < 4e-3 * wanted.norm()


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_matrices_that_are_rounded_are_never_held_in_more(stored: torch.dtype, tmp_path: Path) -> None:
    model = random_text_model(SHAPE)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored)
    directory = save(model, tmp_path)
    loaded = _load(directory, matrices=Matrices.ROUNDED)
    kinds = {(tensor.ndim, tensor.dtype) for tensor in loaded.decoder.state_dict().values()}
    assert kinds == {(1, torch.float32), (2, torch.bfloat16)}
    table = loaded.decoder.model.embed_tokens.weight
    exact = _load(directory, matrices=Matrices.ALIKE).decoder.model.embed_tokens.weight
    assert torch.equal(table, exact.bfloat16())
    compute = _compute(loaded, rounds=True)[0]
    assert compute.name.endswith(" bfloat16")
    assert torch.equal(compute.embed(torch.arange(100)), table[:100].float())


def _load(directory: Path, *, matrices: Matrices) -> DecoderModel:
    checkpoint = open_checkpoint(directory)
    return DecoderModel.load(checkpoint, device=torch.device("cpu"), types=WeightTypes(torch.float32, matrices))


def _compute(
    model: DecoderModel,
    *,
    threads: int = 2,
    num_blocks: int = NUM_BLOCKS,
    kv_dtype: torch.dtype = torch.float32,
    rounds: bool = False,
) -> tuple[NativeCompute, KVCache]:
    cache = KVCache(
        model.config, num_blocks=num_blocks, block_size=BLOCK_SIZE, device=torch.device("cpu"), dtype=kv_dtype
    )
    cache.clear(range(num_blocks))
    return NativeCompute(model, cache, open_library(threads=threads, rounds=rounds)), cache


def _hidden(
    directory: Path,
    wanted: list[int],
    *prompt_rows: PromptRows,
    matrices: Matrices = Matrices.ALIKE,
    kv_dtype: torch.dtype = torch.float32,
    rounds: bool = False,
) -> tuple[Tensor, KVCache]:
    compute, cache = _compute(_load(directory, matrices=matrices), kv_dtype=kv_dtype, rounds=rounds)
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
