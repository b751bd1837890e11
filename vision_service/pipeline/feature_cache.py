"""Features of images, kept by identity: encoded once for all who ask at the same time, and kept for a while.

    nobody has it  --lease-->  being encoded  --done-->  in use  --last reader leaves-->  kept
                                     |                     ^                                |
                          fails, or all callers leave      '------------- lease ------------'
                                     v                                                      v
                                   gone                                       least recently used: gone

Knows identities, bytes and tasks; lives on the event loop. Does not know how features are
made. Every byte is counted in exactly one place: in the budget of bytes under way while an image is being
encoded or read, else among the kept ones, whose sum never passes `max_kept_bytes`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from common.tasks import has_succeeded
from vision_service.pipeline.batcher import EncodeResult
from vision_service.pipeline.byte_budget import ByteBudget

Make = Callable[[], Coroutine[Any, Any, EncodeResult]]
"""Encodes one image; cancelled when nobody wants it any more."""


@dataclass(slots=True)
class CacheCounts:
    """How often what happened since the start."""

    hits: int = 0
    """Images whose features were there."""
    joined: int = 0
    """Images that somebody else was having encoded."""
    misses: int = 0
    """Images that had to be encoded."""
    evictions: int = 0


@dataclass(slots=True, eq=False)
class Lease:
    """Features that are on their way, in use or kept, and how many hold them."""

    image_hash: ImageHash
    num_bytes: int
    encoding: asyncio.Task[EncodeResult]
    ref_count: int = 0
    is_counted: bool = True
    """Whether its bytes are counted among those under way."""

    @property
    def has_arrived(self) -> bool:
        """Whether the features are there."""
        return self.encoding.done()

    async def arrived(self) -> EncodeResult:
        """Wait for the features. Raises what encoding them raised."""
        if self.encoding.done():
            return self.encoding.result()
        # Shielded: the encoding may serve others, and ends when its last holder lets go.
        return await asyncio.shield(self.encoding)


class FeatureCache:
    """Gives out leases on features. Failures are not kept."""

    def __init__(self, budget: ByteBudget, *, max_kept_bytes: int) -> None:
        """Count what is in use in `budget`; with `max_kept_bytes` 0 only equal images in flight are shared."""
        self._budget = budget
        self._max_kept_bytes = max_kept_bytes
        self._in_use: dict[ImageHash, Lease] = {}
        self._kept: OrderedDict[ImageHash, Lease] = OrderedDict()
        self._kept_bytes = 0
        self.counts = CacheCounts()

    @property
    def kept_bytes(self) -> int:
        """Bytes of features that nobody uses now."""
        return self._kept_bytes

    @property
    def num_kept(self) -> int:
        """Images whose features nobody uses now."""
        return len(self._kept)

    @contextmanager
    def lease(self, spec: FeatureSpec, make: Make) -> Iterator[Lease]:
        """Hold an image's features while inside; `make` is called where nobody has them.

        The last caller to leave before they are there cancels the encoding. Raises ResourceExhaustedError
        where the bytes under way are too many.
        """
        lease = self._in_use.get(spec.image_hash)
        # One that failed is for those who hold it; whoever asks next tries again.
        if lease is not None and not (lease.has_arrived and not has_succeeded(lease.encoding)):
            self._count_found(lease)
        else:
            lease = self._take_kept(spec.image_hash) or self._start(spec, make)
            self._in_use[spec.image_hash] = lease
        lease.ref_count += 1
        try:
            yield lease
        finally:
            self._let_go(lease)

    def drop_kept(self) -> None:
        """Let go of everything that nobody uses now."""
        self.counts.evictions += len(self._kept)
        self._kept.clear()
        self._kept_bytes = 0

    def _count_found(self, lease: Lease) -> None:
        if lease.has_arrived:
            self.counts.hits += 1
        else:
            self.counts.joined += 1

    def _take_kept(self, image_hash: ImageHash) -> Lease | None:
        lease = self._kept.get(image_hash)
        if lease is None:
            return None
        self._budget.take(lease.num_bytes)
        lease.is_counted = True
        del self._kept[image_hash]
        self._kept_bytes -= lease.num_bytes
        self.counts.hits += 1
        return lease

    def _start(self, spec: FeatureSpec, make: Make) -> Lease:
        self._budget.take(spec.num_bytes)
        self.counts.misses += 1
        encoding = asyncio.create_task(make())
        lease = Lease(image_hash=spec.image_hash, num_bytes=spec.num_bytes, encoding=encoding)
        encoding.add_done_callback(lambda _: self._ended(lease))
        return lease

    def _let_go(self, lease: Lease) -> None:
        lease.ref_count -= 1
        if lease.ref_count:
            return
        self._withdraw(lease)
        if not lease.has_arrived:
            # Its memory is in use until the task has ended; see `_ended`.
            lease.encoding.cancel()
            return
        self._give_back(lease)
        if has_succeeded(lease.encoding):
            self._keep(lease)

    def _ended(self, lease: Lease) -> None:
        if not lease.ref_count:
            self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        # The end of the task and the last holder's leaving may come in either order.
        if lease.is_counted:
            lease.is_counted = False
            self._budget.give(lease.num_bytes)

    def _withdraw(self, lease: Lease) -> None:
        """Make sure that nobody new gets it from those in use."""
        if self._in_use.get(lease.image_hash) is lease:
            del self._in_use[lease.image_hash]

    def _keep(self, lease: Lease) -> None:
        if lease.num_bytes > self._max_kept_bytes or lease.image_hash in self._kept:
            return
        self._kept[lease.image_hash] = lease
        self._kept_bytes += lease.num_bytes
        while self._kept_bytes > self._max_kept_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.num_bytes
            self.counts.evictions += 1
