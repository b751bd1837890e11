"""Which KV block belongs to whom, and which ones hold something that may be used again.

Knows block ids, reference counts, the free list and the identities of remembered blocks. Does not know
requests, tokens' values or memory: a block id is an index into a cache that another file allocates.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import NewType

from decoder_service.cache.block_hash import BlockHash

BlockId = NewType("BlockId", int)


class IntegrityError(Exception):
    """The books of the engine contradict each other: a fault of ours, never of a caller."""


class BlockManager:
    """Hands out the `num_blocks` blocks of a KV cache, each with room for `block_size` tokens.

    A free block keeps what it holds until it is handed out again, the longest unused one first; until then
    it can be found by its identity, if it was remembered, and be owned again by any number of tables.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size} must be 1 or more")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_evictions = 0
        """Remembered blocks that were handed out for something else."""
        # An ordered map and not a queue: a remembered block is taken out of the middle when it is used again.
        self._free: OrderedDict[BlockId, None] = OrderedDict((BlockId(i), None) for i in range(num_blocks))
        self._ref_counts = [0] * num_blocks
        self._by_hash: dict[BlockHash, BlockId] = {}
        self._hashes: list[BlockHash | None] = [None] * num_blocks
        self._unclean: dict[BlockId, None] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody owns, remembered ones among them."""
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def fits(
        self, num_tokens: int, found: Sequence[BlockId], *, freed: Collection[BlockId] = (), num_spare: int = 0
    ) -> bool:
        """Whether an empty table could `share` the found blocks and then `allocate` for `num_tokens` tokens.

        As if the blocks of `freed` were free too, and so that `num_spare` are left.
        """
        num_owned = sum(self._ref_counts[block_id] > 0 and block_id not in freed for block_id in found)
        return self.num_blocks_for(num_tokens) - num_owned + num_spare <= self.num_free_blocks + len(freed)

    def freed_by(self, block_tables: Iterable[Sequence[BlockId]]) -> frozenset[BlockId]:
        """Blocks that nobody would own if these tables were freed."""
        num_owners = Counter(block_id for table in block_tables for block_id in table)
        return frozenset(block_id for block_id, num in num_owners.items() if num == self._ref_counts[block_id])

    def allocate(self, block_table: list[BlockId], num_tokens: int) -> bool:
        """Lengthen `block_table` until it holds `num_tokens` tokens; all or nothing.

        Returns whether it does now; where blocks are lacking, the table is left as it was.
        """
        num_lacking = self.num_blocks_for(num_tokens) - len(block_table)
        if num_lacking > self.num_free_blocks:
            return False
        for _ in range(num_lacking):
            block_id, _ = self._free.popitem(last=False)
            if self._forget(block_id):
                self.num_evictions += 1
            self._ref_counts[block_id] = 1
            block_table.append(block_id)
        return True

    def is_shared(self, block_id: BlockId) -> bool:
        """Whether a block has several owners, and so must not be written."""
        return self._ref_counts[block_id] > 1

    def replace_last(self, block_table: list[BlockId]) -> BlockId | None:
        """Put a block of the table's own where its last one is shared; returns it, or None where none is free."""
        if not self._free:
            return None
        own: list[BlockId] = []
        self.allocate(own, 1)
        self._ref_counts[block_table[-1]] -= 1
        block_table[-1] = own[0]
        return own[0]

    def free(self, block_table: list[BlockId], *, num_clean: int | None = None) -> None:
        """Give back every block of the table and empty it.

        Those behind the first `num_clean` may hold what harms their next owner; `take_unclean` gives those that nobody
        owns now.
        """
        unclean = block_table[num_clean:] if num_clean is not None else ()
        # Last block first: the start of a sequence is what another request may share, so it is reused last.
        while block_table:
            block_id = block_table.pop()
            if self._ref_counts[block_id] == 0:
                raise IntegrityError(f"block {block_id} is freed twice")
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free[block_id] = None
                # What nobody can find is of no use to anyone, and goes first.
                self._free.move_to_end(block_id, last=self._hashes[block_id] is not None)
        self.keep_unclean(block_id for block_id in unclean if self._ref_counts[block_id] == 0)

    def trim(self, block_table: list[BlockId], num_tokens: int, *, is_clean: bool = False) -> None:
        """Give back the blocks behind the first `num_tokens` tokens.

        They may hold what harms their next owner, unless they are clean.
        """
        count = self.num_blocks_for(num_tokens)
        behind = block_table[count:]
        del block_table[count:]
        self.free(behind, num_clean=None if is_clean else 0)

    @property
    def has_unclean(self) -> bool:
        """Whether `take_unclean` would give any."""
        return bool(self._unclean)

    def take_unclean(self) -> list[BlockId]:
        """Blocks to clear before anything is written to them; each is given once."""
        unclean, self._unclean = self._unclean, {}
        return list(unclean)

    def keep_unclean(self, block_ids: Iterable[BlockId]) -> None:
        """Have `take_unclean` give blocks, again those that could not be cleared."""
        self._unclean.update(dict.fromkeys(block_ids))

    def find(self, hashes: Iterable[BlockHash]) -> list[BlockId]:
        """The remembered blocks of the longest start of a chain; they count as just used."""
        found: list[BlockId] = []
        for block_hash in hashes:
            block_id = self._by_hash.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        for block_id in reversed(found):
            if block_id in self._free:
                self._free.move_to_end(block_id)
        return found

    def share(self, block_table: list[BlockId], found: Sequence[BlockId]) -> None:
        """Append found blocks to a table, which owns them from now on, perhaps beside others."""
        for block_id in found:
            self._free.pop(block_id, None)
            self._ref_counts[block_id] += 1
            block_table.append(block_id)

    def remember(self, block_id: BlockId, block_hash: BlockHash) -> None:
        """Let an owned block be found; of two equal ones the first stays the one that is."""
        if self._hashes[block_id] is None and block_hash not in self._by_hash:
            self._hashes[block_id] = block_hash
            self._by_hash[block_hash] = block_id

    def forget(self, block_table: Sequence[BlockId]) -> None:
        """Let owned blocks not be found any more."""
        for block_id in block_table:
            self._forget(block_id)

    def hash_of(self, block_id: BlockId) -> BlockHash | None:
        """What a block is remembered as; None where it is not."""
        return self._hashes[block_id]

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
        if any(self._hashes[block_id] is not None for block_id in self._unclean):
            raise IntegrityError("a block that must be cleared can be found")
        remembered = {hash_: BlockId(block_id) for block_id, hash_ in enumerate(self._hashes) if hash_ is not None}
        if remembered != self._by_hash:
            raise IntegrityError("a block is remembered under a name that does not find it")

    def _forget(self, block_id: BlockId) -> bool:
        """Drop a block's identity; returns whether it had one."""
        block_hash, self._hashes[block_id] = self._hashes[block_id], None
        if block_hash is None:
            return False
        del self._by_hash[block_hash]
        return True
