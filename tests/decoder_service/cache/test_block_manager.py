"""Blocks are neither lost nor owned twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.cache.block_hash import BlockHash
from decoder_service.cache.block_manager import BlockId, BlockManager, IntegrityError


def test_a_table_grows_by_the_block_and_never_early() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    table: list[BlockId] = []
    lengths = []
    for num_tokens in range(10):
        assert blocks.allocate(table, num_tokens)
        lengths.append(len(table))
    assert lengths == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_allocation_is_all_or_nothing() -> None:
    blocks = BlockManager(num_blocks=3, block_size=4)
    table: list[BlockId] = []
    assert blocks.allocate(table, 4)
    before = list(table)
    assert not blocks.allocate(table, 13)
    assert table == before
    assert blocks.num_free_blocks == 2
    assert blocks.allocate(table, 12)
    assert blocks.num_free_blocks == 0


def test_the_start_of_a_freed_table_is_reused_last() -> None:
    blocks = BlockManager(num_blocks=3, block_size=1)
    freed: list[BlockId] = []
    blocks.allocate(freed, 3)
    for index, block_id in enumerate(freed):
        blocks.remember(block_id, name(index))
    expected = list(reversed(freed))
    blocks.free(freed)
    again: list[BlockId] = []
    blocks.allocate(again, 3)
    assert again == expected


def test_only_what_was_remembered_and_is_handed_out_for_something_else_counts_as_evicted() -> None:
    blocks = BlockManager(num_blocks=4, block_size=1)
    table: list[BlockId] = []
    blocks.allocate(table, 4)
    for index in (0, 1):
        blocks.remember(table[index], name(index))
    blocks.free(table)
    blocks.share(table, blocks.find([name(0)]))
    blocks.allocate(table, 3)
    assert blocks.num_evictions == 0
    blocks.allocate(table, 4)
    assert blocks.num_evictions == 1


def test_freeing_twice_is_found() -> None:
    blocks = BlockManager(num_blocks=2, block_size=1)
    table: list[BlockId] = []
    blocks.allocate(table, 2)
    copy = list(table)
    blocks.free(table)
    with pytest.raises(IntegrityError, match="freed twice"):
        blocks.free(copy)


def test_a_lost_block_and_a_second_owner_are_found() -> None:
    blocks = BlockManager(num_blocks=2, block_size=1)
    table: list[BlockId] = []
    blocks.allocate(table, 1)
    blocks.check_integrity([table])
    with pytest.raises(IntegrityError):
        blocks.check_integrity([])
    with pytest.raises(IntegrityError):
        blocks.check_integrity([table, table])


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 1), (1, 0), (-1, 4)])
def test_a_cache_without_room_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        BlockManager(num_blocks, block_size)


@given(
    num_blocks=st.integers(1, 12),
    block_size=st.integers(1, 5),
    operations=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=60),
)
def test_books_agree_with_a_plain_count(num_blocks: int, block_size: int, operations: list[tuple[int, int]]) -> None:
    """Four owners grow (to a number of tokens) and, where that is 0, free; the model only counts."""
    blocks = BlockManager(num_blocks, block_size)
    tables: list[list[BlockId]] = [[], [], [], []]
    owned = [0, 0, 0, 0]
    for owner, num_tokens in operations:
        if num_tokens == 0:
            blocks.free(tables[owner])
            owned[owner] = 0
        else:
            wanted = max(owned[owner], -(-num_tokens // block_size))
            fits = sum(owned) - owned[owner] + wanted <= num_blocks
            assert blocks.allocate(tables[owner], num_tokens) == fits
            owned[owner] = wanted if fits else owned[owner]
        assert [len(table) for table in tables] == owned
        assert blocks.num_free_blocks == num_blocks - sum(owned)
        blocks.check_integrity(tables)


def name(index: int) -> BlockHash:
    return BlockHash(bytes([index]) * 32)
