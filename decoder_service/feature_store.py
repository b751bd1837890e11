"""Image features that requests wait for or hold, within a budget of bytes.

Knows credits, sharing and order. Does not know tensors, KV blocks or how features are made: an
`ImageEncoder` fills the buffers. It lives on the event loop and needs no lock but its queue.

Credits are given to requests first come first served, and inside a request in prompt order: whoever is at
the head of the queue gets all of its images' memory before the next one gets any. So the head never waits for
somebody behind it, and those before it hold all they need to finish and give their memory back.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.errors import InvalidArgumentError
from common.features import FeatureSpec
from common.identity import ImageHash
from decoder_service.image_encoder import ImageEncoder, ImageFeatures


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptImage:
    """A picture of a request, with what its features must look like."""

    data: bytes
    spec: FeatureSpec


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
    released: bool = False

    async def arrived(self) -> ImageFeatures:
        """Wait until the features are complete. Raises what the encoder raised."""
        # Shielded: the encoding may serve others, and ends when its last holder lets go.
        await asyncio.shield(self.entry.encoding)
        return self.entry.features

    def release(self) -> None:
        """Let go; the last one to do so frees the memory and stops an encoding under way."""
        if not self.released:
            self.released = True
            self.store.let_go(self.entry)


class FeatureStore:
    """Gives out leases on image features. Equal images in flight are encoded once."""

    def __init__(self, encoder: ImageEncoder | None, *, budget_bytes: int) -> None:
        """Take what makes features; None for a model that takes no images, which then must get none."""
        self._encoder = encoder
        self._budget_bytes = budget_bytes
        self._entries: dict[ImageHash, _Entry] = {}
        self._bytes_held = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def bytes_held(self) -> int:
        """Bytes that are reserved for features on their way or here."""
        return self._bytes_held

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
                entry = self._entries.get(image.spec.image_hash)
                if entry is None:
                    await self._wait_for_room(image.spec.num_bytes)
                    entry = self._start(image, salt=salt, request_id=request_id)
                entry.ref_count += 1
                take(index, Lease(self, entry))

    def let_go(self, entry: _Entry) -> None:
        """Drop one hold on an entry; for `Lease`."""
        entry.ref_count -= 1
        if entry.ref_count:
            return
        self._withdraw(entry)
        if entry.encoding.done():
            self._free(entry)
        else:
            # The buffer is being written until the task has ended; see `_ended`.
            entry.encoding.cancel()

    async def _wait_for_room(self, num_bytes: int) -> None:
        while self._bytes_held + num_bytes > self._budget_bytes:
            self._freed.clear()
            await self._freed.wait()

    def _start(self, image: PromptImage, *, salt: bytes, request_id: str) -> _Entry:
        if self._encoder is None:
            raise RuntimeError("an image reached a model that takes none")
        features = ImageFeatures(spec=image.spec, data=bytearray(image.spec.num_bytes))
        encoding = asyncio.create_task(
            self._encoder.encode(
                image.data, salt=salt, spec=image.spec, buffer=memoryview(features.data), request_id=request_id
            )
        )
        entry = _Entry(features=features, encoding=encoding)
        self._bytes_held += image.spec.num_bytes
        self._entries[image.spec.image_hash] = entry
        encoding.add_done_callback(lambda _: self._ended(entry))
        return entry

    def _ended(self, entry: _Entry) -> None:
        if entry.encoding.cancelled() or entry.encoding.exception() is not None:
            # Whoever asks next tries again; those who hold it now see the failure.
            self._withdraw(entry)
        if not entry.ref_count:
            self._free(entry)

    def _withdraw(self, entry: _Entry) -> None:
        """Make sure that nobody new gets the entry."""
        image_hash = entry.features.spec.image_hash
        if self._entries.get(image_hash) is entry:
            del self._entries[image_hash]

    def _free(self, entry: _Entry) -> None:
        if not entry.freed:
            entry.freed = True
            self._bytes_held -= entry.features.spec.num_bytes
            self._freed.set()
