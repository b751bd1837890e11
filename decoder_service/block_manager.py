"""Which KV block belongs to whom.

Knows block ids, reference counts and the free list. Does not know requests, tokens' values or memory: a
block id is an index into a cache that another file allocates.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import NewType

BlockId = NewType("BlockId", int)


class IntegrityError(Exception):
    """The books of the engine contradict each other: a fault of ours, never of a caller."""


class BlockManager:
    """Hands out the `num_blocks` blocks of a KV cache, each with room for `block_size` tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size} must be 1 or more")
        self.num_blocks = num_blocks
        self.block_size = block_size
        # An ordered map and not a queue: a cached block is taken out of the middle when it is used again.
        self._free: OrderedDict[BlockId, None] = OrderedDict((BlockId(i), None) for i in range(num_blocks))
        self._ref_counts = [0] * num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, block_table: list[BlockId], num_tokens: int) -> bool:
        """Lengthen `block_table` until it holds `num_tokens` tokens; all or nothing.

        Returns whether it does now; where blocks are lacking, the table is left as it was.
        """
        num_lacking = self.num_blocks_for(num_tokens) - len(block_table)
        if num_lacking > self.num_free_blocks:
            return False
        for _ in range(num_lacking):
            block_id, _ = self._free.popitem(last=False)
            self._ref_counts[block_id] = 1
            block_table.append(block_id)
        return True

    def free(self, block_table: list[BlockId]) -> None:
        """Give back every block of the table and empty it."""
        # Last block first: the start of a sequence is what another request may share, so it is reused last.
        while block_table:
            block_id = block_table.pop()
            if self._ref_counts[block_id] == 0:
                raise IntegrityError(f"block {block_id} is freed twice")
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free[block_id] = None

    def check_integrity(self, block_tables: Iterable[Sequence[BlockId]]) -> None:
        """Compare the books with all tables there are: no block lost, none with an owner too many.

        Raises IntegrityError.
        """
        num_owners = Counter(block_id for table in block_tables for block_id in table)
        for block_id, ref_count in enumerate(self._ref_counts):
            if num_owners[BlockId(block_id)] != ref_count:
                raise IntegrityError(
                    f"block {block_id} is in {num_owners[BlockId(block_id)]} tables but counts {ref_count}"
                )
            if (block_id in self._free) != (ref_count == 0):
                raise IntegrityError(f"block {block_id} counts {ref_count} owners and is wrongly free or lost")
