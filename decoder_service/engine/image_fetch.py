"""Gets the features of one request's images to the engine, and again if the engine asks for them again.

Knows leases and the order of events on the event loop. Does not know how features are made or used.

    begin(indices) --> leases, in prompt order --> each image as it arrives: deliver(index, features, fetch)
    consumed(index): that image's lease ends, or it gets none
    begin(indices) again: everything ends and starts anew
    close: everything ends
"""

import asyncio
from collections.abc import Callable, Sequence, Set
from contextvars import copy_context
from typing import Final

from common.errors import DiptychError, InternalError
from decoder_service.cache.feature_store import FeatureStore, Lease, PromptImage
from decoder_service.vision.image_encoder import ImageFeatures

_ENCODERS_FIELD: Final = "image"

Deliver = Callable[[int, ImageFeatures, int], None]
"""Takes an image's index, its features, and how often `begin` had been called when it set out."""


class ImageFetch:
    """The features of one request's images, from the first reservation to the last release."""

    def __init__(
        self,
        store: FeatureStore,
        images: Sequence[PromptImage],
        *,
        salt: bytes,
        request_id: str,
        deliver: Deliver,
        fail: Callable[[DiptychError], None],
    ) -> None:
        self._store = store
        self._images = images
        self._salt = salt
        self._request_id = request_id
        self._deliver = deliver
        self._fail = fail
        # The engine asks for images from its own thread; they are fetched in the name of the call.
        self._call_context = copy_context()
        self._num_begun = 0
        self._encoded: set[int] = set()
        self._wanted: set[int] = set()
        self._leases: dict[int, Lease] = {}
        self._task: asyncio.Task[None] | None = None
        self._stopped: asyncio.Task[None] | None = None

    @property
    def encoded(self) -> Set[int]:
        """Images that somebody was asked to encode for this request, so far."""
        return self._encoded

    def begin(self, indices: Sequence[int]) -> None:
        """Drop everything that was fetched and fetch these images; returns at once. Failures go to `fail`, once."""
        self.stop()
        self._num_begun += 1
        self._wanted = set(indices)
        if indices:
            self._task = asyncio.create_task(self._run(indices, self._num_begun), context=self._call_context)

    def consumed(self, index: int) -> None:
        """Let go of an image that the engine no longer needs, also if it is still to come."""
        self._wanted.discard(index)
        lease = self._leases.pop(index, None)
        if lease is not None:
            lease.release()

    def forget(self) -> None:
        """See to it that nobody gets the features that this request had."""
        self._store.forget(self._images)

    async def close(self) -> None:
        """Let go of everything and wait until nothing runs."""
        self.stop()
        if self._stopped is not None:
            await asyncio.wait([self._stopped])

    def stop(self) -> None:
        """Let go of everything at once; something may run on for a moment."""
        if self._task is not None:
            self._task.cancel()
            self._task, self._stopped = None, self._task
        for index in list(self._leases):
            self.consumed(index)

    async def _run(self, indices: Sequence[int], fetch: int) -> None:
        images = [self._images[index] for index in indices]
        try:
            async with asyncio.TaskGroup() as group:

                def take(place: int, lease: Lease) -> None:
                    if lease.is_first:
                        self._encoded.add(indices[place])
                    if indices[place] in self._wanted:
                        self._leases[indices[place]] = lease
                        group.create_task(self._pass_on(indices[place], lease, fetch))
                    else:
                        lease.release()

                await self._store.lease(images, salt=self._salt, request_id=self._request_id, take=take)
        except* DiptychError as group_error:
            self._fail(_first(group_error))
        except* Exception as group_error:
            self._fail(InternalError("ENCODE_FAILED", "fetching the features of an image failed"))
            raise group_error

    async def _pass_on(self, index: int, lease: Lease, fetch: int) -> None:
        try:
            features = await lease.arrived()
        except DiptychError as error:
            # The encoder was sent one picture, and knows no other name for it.
            raise (error.at(self._images[index].field) if error.field == _ENCODERS_FIELD else error) from None
        self._deliver(index, features, fetch)


def _first(group: BaseExceptionGroup[DiptychError]) -> DiptychError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
