"""Blocks that several completions of one prompt own, until one of them goes on to write there.

Knows whose last block is shared, and which copies a step needs. Does not know the order of requests (see
`scheduler`) or what a block holds. Only a block that is not full is ever written, and only the one that the prompt
ends in is shared while it is not full: each completion gets a copy of it when it first writes, and the last one
that still owns it writes in place.
"""

from decoder_service.cache.block_manager import BlockManager
from decoder_service.engine.request import Request
from decoder_service.engine.step import BlockCopy


class CopyOnWrite:
    """The copies of one step."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._copies: dict[Request, BlockCopy] = {}

    def own_last_block(self, request: Request) -> bool:
        """See that nobody else owns the block that a request goes on to write in; false where none is free."""
        if request.num_computed_tokens % self._blocks.block_size == 0:
            return True
        source = request.block_table[-1]
        if not self._blocks.is_shared(source):
            return True
        target = self._blocks.replace_last(request.block_table)
        if target is not None:
            self._copies[request] = BlockCopy(source, target)
        return target is not None

    def drop(self, request: Request) -> None:
        """Copy nothing for a request that gave way: somebody else may get the block that it would be copied to."""
        self._copies.pop(request, None)

    def take(self) -> tuple[BlockCopy, ...]:
        """The step's copies; the next one begins with none."""
        copies, self._copies = self._copies, {}
        return tuple(copies.values())
