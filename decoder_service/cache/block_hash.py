"""The identity of a full KV block: equal exactly when its keys and values are.

Knows hashing. Does not know requests or which blocks exist. A block's identity is chained to that of the
block before it, and the chain begins with the tenant's salt, so it stands for everything from the first token
on. An image's placeholder tokens say nothing of its pixels: its own identity goes in beside them.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, NewType

BlockHash = NewType("BlockHash", bytes)
"""SHA-256 digest, 32 bytes."""

_DOMAIN_TAG = b"diptych.block.v1"


class BlockImage(NamedTuple):
    """An image that has tokens in a block."""

    identity: bytes
    """See `common.image.identity`."""
    offset: int
    """Place of the block's first token in the image; below 0 where the image begins inside the block."""


HashBlock = Callable[[BlockHash, Sequence[int], Sequence[BlockImage]], BlockHash]
"""Makes a block's identity of the one before it, the block's token ids and the images in it, in order."""


def root_hash(cache_salt: bytes, adapter: bytes = b"") -> BlockHash:
    """What the chain of a tenant begins with; no two salts have a block in common, and no two adapters' digests."""
    parts = (_DOMAIN_TAG, cache_salt, adapter) if adapter else (_DOMAIN_TAG, cache_salt)
    return BlockHash(hashlib.sha256(b"".join(map(_sized, parts))).digest())


def block_hash(parent: BlockHash, token_ids: Sequence[int], images: Sequence[BlockImage]) -> BlockHash:
    """SHA-256 over the parent, the ids and each image's identity and offset; every part says how long it is."""
    digest = hashlib.sha256(parent)
    digest.update(struct.pack(f"<I{len(token_ids)}I", len(token_ids), *token_ids))
    for image in images:
        digest.update(_sized(image.identity) + struct.pack("<q", image.offset))
    return BlockHash(digest.digest())


def _sized(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part
