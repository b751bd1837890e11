"""The Triton kernel against the plain torch attention, in the interpreter where there is no GPU."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from common.model.attention import paged_attention
from decoder_service.model.cuda.paged_attention import triton_paged_attention
from decoder_service.model.cuda.tiles import AttentionTiles, num_splits_for

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Requests of these new and whole lengths over a cache of random keys and values."""

    new: tuple[int, ...]
    lengths: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    block_size: int = 4
    window: int | None = None
    splits: int = 1
    tiles_of: torch.dtype = torch.bfloat16
    """Tiles as for queries of this type"""


CASES = [
    Case(new=(1, 1, 1), lengths=(1, 130, 17)),
    Case(new=(1, 1), lengths=(1, 150), splits=4, head_dim=20, heads=6),
    Case(new=(1, 1), lengths=(129, 64), splits=2, window=7, kv_heads=4),
    Case(new=(5, 1, 70), lengths=(5, 9, 140)),
    Case(new=(5, 1, 33), lengths=(70, 9, 33), splits=2, window=11, block_size=16),
    Case(new=(66,), lengths=(130,), heads=4, kv_heads=1, block_size=3),
    Case(new=(5, 1, 33), lengths=(70, 9, 33), splits=2, tiles_of=torch.float32),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_gives_what_plain_torch_gives_and_reads_nothing_unwritten(case: Case) -> None:
    query, keys, values, tables = _tensors(case)
    want = paged_attention(
        query,
        keys,
        values,
        block_tables=tables,
        query_lengths=case.new,
        seq_lens=case.lengths,
        scale=case.head_dim**-0.5,
        sliding_window=case.window,
    )
    for blocks in (keys, values):
        _poison_what_was_never_written(blocks, tables, case)
    torch.testing.assert_close(_attend(case, query, keys, values, tables), want, rtol=1e-4, atol=1e-5)


def test_rows_of_no_keys_are_zero_and_harm_nobody() -> None:
    """Rows that fill a recorded batch up."""
    case = Case(new=(1, 1), lengths=(9, 1))
    query, keys, values, tables = _tensors(case)
    full = _attend(case, query, keys, values, tables)
    filled_up = _attend(Case(new=(1, 1), lengths=(9, 0)), query, keys, values, tables)
    torch.testing.assert_close(filled_up[0], full[0])
    assert not filled_up[1].any()


def test_another_block_table_gives_another_answer() -> None:
    """The negative control."""
    case = Case(new=(1,), lengths=(9,))
    query, keys, values, tables = _tensors(case)
    wrong = tables.roll(1, dims=1)
    assert not torch.allclose(_attend(case, query, keys, values, tables), _attend(case, query, keys, values, wrong))


def test_keys_are_split_where_programs_are_few_and_contexts_long() -> None:
    def splits(num_tiles: int, length: int) -> int:
        return num_splits_for(num_tiles=num_tiles, num_key_value_heads=8, num_programs=264, max_seq_len=length)

    assert splits(1, 100_000) == 32
    assert splits(1, 300) == 2
    assert splits(1, 100) == 1
    assert splits(128, 100_000) == 1


def _tensors(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, keys, values, and block tables of blocks in no order."""
    generator = torch.Generator().manual_seed(0)
    counts = [-(-length // case.block_size) for length in case.lengths]
    order = torch.randperm(sum(counts) + 2, generator=generator).tolist()
    tables = torch.zeros(len(counts), max(counts), dtype=torch.long)
    for row, count in zip(tables, counts, strict=True):
        row[:count] = torch.tensor([order.pop() for _ in range(count)])
    shape = (sum(counts) + 2, case.block_size, case.kv_heads, case.head_dim)
    keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
    query = torch.randn(sum(case.new), case.heads, case.head_dim, generator=generator)
    return query.to(DEVICE), keys.to(DEVICE), values.to(DEVICE), tables.to(DEVICE)


def _poison_what_was_never_written(blocks: Tensor, tables: Tensor, case: Case) -> None:
    written = torch.zeros(blocks.shape[:2], dtype=torch.bool, device=blocks.device)
    for table, length in zip(tables, case.lengths, strict=True):
        places = torch.arange(length, device=blocks.device)
        written[table[places // case.block_size], places % case.block_size] = True
    blocks[~written] = float("nan")


def _attend(case: Case, query: Tensor, keys: Tensor, values: Tensor, tables: Tensor) -> Tensor:
    starts = [sum(case.new[:index]) for index in range(len(case.new) + 1)]
    return triton_paged_attention(
        query,
        keys,
        values,
        block_tables=tables,
        query_starts=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
        seq_lens=torch.tensor(case.lengths, dtype=torch.int32, device=DEVICE),
        tiles=AttentionTiles.for_lengths(
            case.new, num_groups=case.heads // case.kv_heads, device=DEVICE, dtype=case.tiles_of
        ),
        num_splits=case.splits,
        scale=case.head_dim**-0.5,
        sliding_window=case.window,
    )
