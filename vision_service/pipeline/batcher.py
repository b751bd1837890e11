"""The batcher: packs images that wait into batches for the encoder, first come first served.

Knows patches, time and one encoder thread. Does not know pixels, tensors or calls. Two rules:

- A batch takes the longest head of the queue that fits into `max_batch_patches`; an image larger than that
  goes alone. Nobody overtakes.
- A batch leaves when it is full, or when its first image has waited `max_wait` seconds for company, and the
  encoder is free. Images whose caller has left are dropped before the encoder sees them.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from common.errors import DiptychError, InternalError, ResourceExhaustedError, UnavailableError
from common.features.features import EncodeTimings
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import EncodedImage
from vision_service.pipeline.pending import Pending

_LOG = logging.getLogger(__name__)

Encode = Callable[[list[Pixels]], Sequence[EncodedImage]]
"""Encodes a batch; called in the encoder thread, one call at a time."""
OnBatch = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeResult:
    """Features of one image, and where the time went."""

    features: EncodedImage
    timings: EncodeTimings
    """Without preprocessing, which comes before the batcher: whoever brings the image adds it."""


@dataclass(slots=True, eq=False)
class _Waiting:
    pixels: Pixels
    num_patches: int
    arrival: float
    result: asyncio.Future[EncodeResult]


class Batcher:
    """Feeds `encode` with batches from images that callers bring one by one."""

    def __init__(
        self,
        encode: Encode,
        *,
        max_batch_patches: int,
        max_pending_patches: int,
        max_wait: float,
        on_batch: OnBatch | None = None,
        make_room: Callable[[], None] | None = None,
    ) -> None:
        """Take an encoder; `on_batch` hears of each batch that it encoded: images, patches, seconds.

        `make_room` is called where a batch was too much for the encoder's memory, before less is tried.
        """
        self._encode = encode
        self._on_batch = on_batch
        self._make_room = make_room
        self._max_batch_patches = max_batch_patches
        self._max_wait = max_wait
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._task: asyncio.Task[None] | None = None
        self.pending = Pending(max_pending_patches)
        """What callers admit to it before they bring it."""
        self.num_encoded_images = 0
        self.num_batches = 0
        self.device_lost = asyncio.Event()
        """Set when nothing will be encoded again in this process: the encoder says so, or the batcher has stopped."""

    def start(self) -> None:
        """Begin to encode."""
        self._task = asyncio.create_task(self._run(), name="batcher")
        self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Let the batch under way end in its thread, refuse all others with UNAVAILABLE."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._thread.shutdown)
        _fail(self._waiting, _closing())
        self._waiting.clear()

    async def encode(self, pixels: Pixels, *, num_patches: int) -> EncodeResult:
        """Features of one admitted image. May be cancelled at any time.

        Raises the encoder's DiptychError, or InternalError ENCODE_FAILED.
        """
        if self._task is None or self._task.done():
            raise _closing()
        result = asyncio.get_running_loop().create_future()
        waiting = _Waiting(pixels, num_patches, time.monotonic(), result)
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.result

    async def _run(self) -> None:
        while True:
            batch = await self._next_batch()
            try:
                await self._encode_batch(batch)
            except asyncio.CancelledError:
                _fail(batch, _closing())
                raise
            except Exception:  # A bug in what hears of a batch: the next one is encoded all the same.
                _LOG.exception("a batch failed behind the encoder")
                _fail(batch, _failed())

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Let nobody wait for a batcher that a bug has stopped, which nobody else would notice."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.critical("the batcher stopped", exc_info=error)
            _fail(self._waiting, _failed())
            self.device_lost.set()

    async def _next_batch(self) -> list[_Waiting]:
        """Wait until a batch may leave, and take it out of the queue."""
        while True:
            batch, is_full = self._pack()
            remaining = None
            if batch:
                remaining = batch[0].arrival + self._max_wait - time.monotonic()
                if is_full or remaining <= 0:
                    for _ in batch:
                        self._waiting.popleft()
                    return batch
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await self._arrived.wait()

    def _pack(self) -> tuple[list[_Waiting], bool]:
        """The head of the queue that fits into a batch, and whether the batch cannot grow any more."""
        self._waiting = deque(waiting for waiting in self._waiting if not waiting.result.done())
        batch: list[_Waiting] = []
        num_patches = 0
        for waiting in self._waiting:
            num_patches += waiting.num_patches
            if batch and num_patches > self._max_batch_patches:
                return batch, True
            batch.append(waiting)
        return batch, num_patches >= self._max_batch_patches

    async def _encode_batch(self, batch: list[_Waiting], *, is_repeated: bool = False) -> None:
        loop = asyncio.get_running_loop()
        start = time.monotonic()
        images = [waiting.pixels for waiting in batch]
        try:
            features = await loop.run_in_executor(self._thread, self._encode, images)
            if len(features) != len(batch):
                raise RuntimeError(f"the encoder returned {len(features)} images for {len(batch)}")
        except Exception as error:
            await self._after_failure(batch, error, is_repeated=is_repeated)
            return
        seconds = time.monotonic() - start
        self.num_encoded_images += len(batch)
        self.num_batches += 1
        num_patches = sum(waiting.num_patches for waiting in batch)
        self.pending.seconds_per_patch = seconds / num_patches
        for waiting, image in zip(batch, features, strict=True):
            if not waiting.result.done():
                timings = EncodeTimings(queue=start - waiting.arrival, preprocess=0.0, encode=seconds)
                waiting.result.set_result(EncodeResult(features=image, timings=timings))
        if self._on_batch is not None:
            self._on_batch(len(batch), num_patches, seconds)

    async def _after_failure(self, batch: list[_Waiting], error: Exception, *, is_repeated: bool) -> None:
        """Try the images of a failed batch one by one, so that only the one at fault fails.

        One that was alone is tried again where memory was short, which there is more of now; each image once.
        """
        is_short = isinstance(error, ResourceExhaustedError)
        if is_short and self._make_room is not None:
            self._make_room()
        if isinstance(error, UnavailableError):
            self.device_lost.set()
        elif len(batch) > 1:
            _LOG.warning("a batch of %d images failed and is tried one by one", len(batch), exc_info=error)
            for waiting in batch:
                if not waiting.result.done():
                    await self._encode_batch([waiting], is_repeated=True)
            return
        elif is_short and not is_repeated:
            await self._encode_batch(batch, is_repeated=True)
            return
        if not isinstance(error, DiptychError):
            _LOG.error("the encoder failed", exc_info=error)
            error = _failed()
        _fail(batch, error)


def _fail(images: Iterable[_Waiting], error: Exception) -> None:
    for waiting in images:
        if not waiting.result.done():
            waiting.result.set_exception(error)


def _failed() -> InternalError:
    return InternalError("ENCODE_FAILED", "the image could not be encoded")


def _closing() -> UnavailableError:
    return UnavailableError("DRAINING", "this replica is shutting down")
