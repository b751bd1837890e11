"""Gets the features of one request's images to the engine, and again if the engine asks for them again.

Knows leases and the order of events on the event loop. Does not know how features are made or used.

    start --> leases, in prompt order --> each image as it arrives: deliver(index, features, round)
    consumed(index): that image's lease ends
    restart: the request was preempted; everything ends and starts anew, in the next round
    close: everything ends
"""

import asyncio
from collections.abc import Callable, Sequence

from common.errors import DiptychError, InternalError
from decoder_service.feature_store import FeatureStore, Lease, PromptImage
from decoder_service.image_encoder import ImageFeatures

Deliver = Callable[[int, ImageFeatures, int], None]
"""Takes an image's index, its features, and how often the fetch had been restarted when it set out."""


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
        self._round = 0
        self._leases: dict[int, Lease] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to fetch; returns at once. Failures go to `fail`, once."""
        if self._images:
            self._task = asyncio.create_task(self._run(self._round))

    def restart(self) -> None:
        """Drop everything that was fetched and begin again."""
        self._drop()
        self._round += 1
        self.start()

    def consumed(self, index: int) -> None:
        """Let go of an image that the engine no longer needs."""
        lease = self._leases.pop(index, None)
        if lease is not None:
            lease.release()

    async def close(self) -> None:
        """Let go of everything and wait until nothing runs."""
        task = self._task
        self._drop()
        if task is not None:
            await asyncio.wait([task])

    def _drop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for index in list(self._leases):
            self.consumed(index)

    async def _run(self, round_: int) -> None:
        try:
            async with asyncio.TaskGroup() as group:

                def take(index: int, lease: Lease) -> None:
                    self._leases[index] = lease
                    group.create_task(self._pass_on(index, lease, round_))

                await self._store.lease(self._images, salt=self._salt, request_id=self._request_id, take=take)
        except* DiptychError as group_error:
            self._fail(_first(group_error))
        except* Exception as group_error:
            self._fail(InternalError("ENCODE_FAILED", "fetching the features of an image failed"))
            raise group_error

    async def _pass_on(self, index: int, lease: Lease, round_: int) -> None:
        self._deliver(index, await lease.arrived(), round_)


def _first(group: BaseExceptionGroup[DiptychError]) -> DiptychError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
