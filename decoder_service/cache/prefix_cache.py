"""Which blocks a request can take over instead of computing them.

Knows requests and the identities of their blocks. Does not know which blocks are free (see `block_manager`) or
when a request is admitted (see `scheduler`).

A block is remembered once the request that computed it got a token from finite logits, because those depend on
every key and value before them: nothing that holds a NaN is ever shared.
"""

from collections.abc import Collection, Sequence

from decoder_service.cache.block_hash import BlockHash, BlockImage, HashBlock, root_hash
from decoder_service.cache.block_manager import BlockId, BlockManager, IntegrityError
from decoder_service.engine.request import Request


class PrefixCache:
    """Finds the longest start of a request whose blocks are remembered, in full blocks."""

    def __init__(self, blocks: BlockManager, hash_block: HashBlock | None) -> None:
        """Take what identifies blocks; None remembers nothing."""
        self.num_queried_tokens = 0
        """Tokens of the requests that were admitted, each request counted once."""
        self.num_hit_tokens = 0
        """Those of them that were not computed."""
        self.num_images_covered = 0
        """Images of these requests that were not asked for, as the cache held all of their tokens."""
        self._blocks = blocks
        self._hash_block = hash_block

    def find(self, request: Request) -> list[BlockId]:
        """The remembered blocks of a request's start, and how far they reach in its `num_cached_tokens`.

        Its last known token is never among them: it must be computed for the logits of the next one.
        """
        num_blocks = request.num_reusable_tokens // self._blocks.block_size
        found = self._blocks.find(self._hashes(request, num_blocks))
        request.num_cached_tokens = len(found) * self._blocks.block_size
        return found

    def take(self, request: Request, found: Sequence[BlockId]) -> None:
        """Let a request own the blocks that `find` just found, as if it had computed them."""
        self._blocks.share(request.block_table, found)
        request.num_computed_tokens = request.num_finite_tokens = request.num_cached_tokens
        request.num_known_blocks = len(found)
        if request.num_preemptions == 0:
            request.num_saved_tokens = request.num_cached_tokens
            self.num_queried_tokens += request.num_tokens
            self.num_hit_tokens += request.num_cached_tokens
            covered = set(range(len(request.placeholders))) - set(request.uncovered_images)
            self.num_images_covered += len(covered - set(request.wanted_images))

    def remember(self, request: Request) -> None:
        """Remember the full blocks that a running request has computed; call it when its logits were finite."""
        if self._hash_block is None:
            return
        num_blocks = request.num_computed_tokens // self._blocks.block_size
        if num_blocks == request.num_known_blocks:
            return  # As in nearly every step, whose cost must not grow with the context.
        hashes = self._hashes(request, num_blocks)
        for index in range(request.num_known_blocks, num_blocks):
            self._blocks.remember(request.block_table[index], hashes[index])
        request.num_known_blocks = num_blocks

    def give_back(self, request: Request) -> None:
        """Let a request own no blocks any more; those behind its last finite logits may hold a NaN."""
        is_clean = request.num_finite_tokens == request.num_computed_tokens and not request.is_suspect
        num_clean = None if is_clean else request.num_finite_tokens // self._blocks.block_size
        self._blocks.free(request.block_table, num_clean=num_clean)

    def forget(self, request: Request) -> None:
        """Share none of a request's blocks any more."""
        self._blocks.forget(request.block_table)

    def check_integrity(self, requests: Collection[Request]) -> None:
        """Compare what is remembered of the requests' blocks with what they hold. Raises IntegrityError."""
        for request in requests:
            known = request.block_table[: request.num_known_blocks]
            for block_id, block_hash in zip(known, request.block_hashes, strict=False):
                if self._blocks.hash_of(block_id) not in (None, block_hash):
                    raise IntegrityError(f"block {block_id} is remembered as another than it is")

    def _hashes(self, request: Request, num_blocks: int) -> Sequence[BlockHash]:
        """The identities of a request's first blocks, of which each is made once."""
        if self._hash_block is None:
            return ()
        hashes, size = request.block_hashes, self._blocks.block_size
        while len(hashes) < num_blocks:
            parent = hashes[-1] if hashes else root_hash(request.cache_salt, request.adapter.digest)
            start = len(hashes) * size
            token_ids = request.token_ids(start, start + size)
            hashes.append(self._hash_block(parent, token_ids, _images(request, start, start + size)))
        return hashes[:num_blocks]


def _images(request: Request, start: int, stop: int) -> list[BlockImage]:
    """The images with tokens from position `start` up to `stop`."""
    return [
        BlockImage(identity, start - span.offset)
        for span, identity in zip(request.placeholders, request.image_identities, strict=True)
        if span.offset < stop and span.end > start
    ]
