"""Image features that requests wait for or hold, and those that were held lately, within a budget of bytes.

Knows credits, sharing, order and what to keep. Does not know tensors, KV blocks or how features are made: an
`ImageEncoder` fills the buffers. It lives on the event loop and needs no lock but its queue.

Credits are given to requests first come first served, and inside a request in prompt order: whoever is at
the head of the queue gets all of its images' memory before the next one gets any. So the head never waits for
somebody behind it, and those before it hold all they need to finish and give their memory back. Features
that nobody holds any more stay until their memory is needed, the longest unused ones go first; so nobody
waits for them either.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.errors import InvalidArgumentError
from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from common.tasks import has_succeeded
from decoder_service.cache.feature_places import FeaturePlaces
from decoder_service.vision.image_encoder import ImageEncoder, ImageFeatures


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptImage:
    """A picture of a request, with what its features must look like."""

    data: bytes
    spec: FeatureSpec
    field: str = "image"
    """Where it stands in the request."""


@dataclass(slots=True, eq=False)
class _Entry:
    """Features that are on their way or here, and how many hold them."""

    features: ImageFeatures
    encoding: asyncio.Task[None]
    ref_count: int = 0
    freed: bool = False


@dataclass(slots=True, eq=False)
class Lease:
    """One request's hold on one image's features; released exactly once, by anyone, at any time."""

    store: "FeatureStore"
    entry: _Entry
    is_first: bool
    """Whether the features are encoded for this lease; else they were here or on their way."""
    released: bool = False

    async def arrived(self) -> ImageFeatures:
        """Wait until the features are complete. Raises what the encoder raised."""
        # Shielded: the encoding may serve others, and ends when its last holder lets go.
        await asyncio.shield(self.entry.encoding)
        return self.entry.features

    def release(self) -> None:
        """Let go; when the last one does, features are kept for later, and an encoding under way stops."""
        if not self.released:
            self.released = True
            self.store.let_go(self.entry)


class FeatureStore:
    """Gives out leases on image features. Equal images in flight are encoded once."""

    def __init__(self, encoder: ImageEncoder | None, *, budget_bytes: int, caching: bool = True) -> None:
        """Take what makes features; None for a model that takes no images, which then must get none.

        Without `caching`, features are gone when nobody holds them.
        """
        self.num_encoded = 0
        """Encodings that were begun."""
        self.num_found = 0
        """Leases on features that were here or on their way."""
        self._encoder = encoder
        self._budget_bytes = budget_bytes
        self._caching = caching
        self._places = FeaturePlaces(budget_bytes=budget_bytes)
        self._entries: dict[ImageHash, _Entry] = {}
        self._unheld: OrderedDict[ImageHash, _Entry] = OrderedDict()
        self._bytes_held = 0
        self._bytes_cached = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def budget_bytes(self) -> int:
        """Most bytes, held and cached together."""
        return self._budget_bytes

    @property
    def bytes_held(self) -> int:
        """Bytes that are reserved for features on their way or held."""
        return self._bytes_held

    @property
    def bytes_cached(self) -> int:
        """Bytes of features that nobody holds; with those that are held they stay within the budget."""
        return self._bytes_cached

    def check_fits(self, images: Sequence[PromptImage]) -> None:
        """Raise InvalidArgumentError where the images of one request are larger than the whole budget.

        A request that was preempted needs all of its images together, or two could wait for each other.
        """
        needed = sum({image.spec.image_hash: image.spec.num_bytes for image in images}.values())
        if needed > self._budget_bytes:
            raise InvalidArgumentError(
                "IMAGES_TOO_LARGE",
                f"the images need {needed} bytes of features together, {self._budget_bytes} is the most",
                metadata={"limit": self._budget_bytes, "got": needed},
            )

    async def lease(
        self,
        images: Sequence[PromptImage],
        *,
        salt: bytes,
        request_id: str,
        take: Callable[[int, Lease], None],
    ) -> None:
        """Reserve memory for images in prompt order, start encoding each, and hand out the leases.

        `take` gets (index, lease) as soon as an image has its memory. A lease belongs to the caller from
        then on, also if this call is cancelled later.
        """
        async with self._turn:
            for index, image in enumerate(images):
                entry = self._sound(image.spec.image_hash)
                is_first = entry is None
                if entry is None:
                    await self._wait_for_room(image.spec.num_bytes)
                    entry = self._start(image, salt=salt, request_id=request_id)
                else:
                    self.num_found += 1
                    self._hold(entry)
                entry.ref_count += 1
                take(index, Lease(self, entry, is_first))

    def forget(self, images: Sequence[PromptImage]) -> None:
        """Give the features of these images to nobody new; they were of no use."""
        for image in images:
            entry = self._entries.pop(image.spec.image_hash, None)
            if entry is not None and self._unheld.pop(image.spec.image_hash, None) is not None:
                self._drop(entry)

    def let_go(self, entry: _Entry) -> None:
        """Drop one hold on an entry; for `Lease`."""
        entry.ref_count -= 1
        if entry.ref_count:
            return
        if not entry.encoding.done():
            # The buffer is being written until the task has ended; see `_ended`.
            self._withdraw(entry)
            entry.encoding.cancel()
        elif self._caching and self._is_offered(entry) and has_succeeded(entry.encoding):
            self._keep(entry)
        else:
            self._withdraw(entry)
            self._free(entry)

    async def _wait_for_room(self, num_bytes: int) -> None:
        while self._bytes_held + num_bytes > self._budget_bytes:
            self._freed.clear()
            await self._freed.wait()
        while self._bytes_held + self._bytes_cached + num_bytes > self._budget_bytes:
            image_hash, entry = self._unheld.popitem(last=False)
            del self._entries[image_hash]
            self._drop(entry)

    def _sound(self, image_hash: ImageHash) -> _Entry | None:
        """Features that are here or on their way; those that failed are not: only their holders see that."""
        entry = self._entries.get(image_hash)
        has_failed = entry is not None and entry.encoding.done() and not has_succeeded(entry.encoding)
        return None if has_failed else entry

    def _start(self, image: PromptImage, *, salt: bytes, request_id: str) -> _Entry:
        if self._encoder is None:
            raise RuntimeError("an image reached a model that takes none")
        features = ImageFeatures(spec=image.spec, data=self._places.take(image.spec.num_bytes))
        encoding = asyncio.create_task(
            self._encoder.encode(image.data, salt=salt, spec=image.spec, buffer=features.data, request_id=request_id)
        )
        entry = _Entry(features=features, encoding=encoding)
        self.num_encoded += 1
        self._bytes_held += image.spec.num_bytes
        self._entries[image.spec.image_hash] = entry
        encoding.add_done_callback(lambda _: self._ended(entry))
        return entry

    def _ended(self, entry: _Entry) -> None:
        if not entry.ref_count and not self._is_offered(entry):
            self._free(entry)

    def _is_offered(self, entry: _Entry) -> bool:
        """Whether somebody new would get the entry."""
        return self._entries.get(entry.features.spec.image_hash) is entry

    def _withdraw(self, entry: _Entry) -> None:
        """Make sure that nobody new gets the entry."""
        if self._is_offered(entry):
            del self._entries[entry.features.spec.image_hash]

    def _keep(self, entry: _Entry) -> None:
        """Turn held bytes into cached ones."""
        self._unheld[entry.features.spec.image_hash] = entry
        self._bytes_cached += entry.features.spec.num_bytes
        self._bytes_held -= entry.features.spec.num_bytes
        self._freed.set()

    def _hold(self, entry: _Entry) -> None:
        """Turn cached bytes into held ones, where that has not been done; there is always room for it."""
        if self._unheld.pop(entry.features.spec.image_hash, None) is not None:
            self._bytes_cached -= entry.features.spec.num_bytes
            self._bytes_held += entry.features.spec.num_bytes

    def _drop(self, entry: _Entry) -> None:
        """Let cached features go."""
        entry.freed = True
        self._bytes_cached -= entry.features.spec.num_bytes

    def _free(self, entry: _Entry) -> None:
        if not entry.freed:
            entry.freed = True
            self._bytes_held -= entry.features.spec.num_bytes
            self._freed.set()
