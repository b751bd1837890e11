"""The decode pool: a few worker processes and the bounded queue before them.

Knows jobs and time. Does not know Pillow, nor what a patch is for. Every worker has a keeper, a task that
owns it: takes a job, exchanges it, and replaces a worker that died, hung or answered nonsense. Such a worker
costs exactly the one image that it held. `close` leaves no process and no task behind.
"""

import asyncio
import logging
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from common.calls.reasons import bounded
from common.errors import InternalError, InvalidArgumentError, ResourceExhaustedError, UnavailableError
from common.image.preprocessing import PatchGrid, PreprocessingMode
from vision_service.decoding.decode_worker import DecodeSettings
from vision_service.decoding.image import Pixels
from vision_service.decoding.worker_process import WorkerBrokenError, WorkerProcess

_LOG = logging.getLogger(__name__)
_RESTART_PAUSE = 1.0
"""Seconds between tries to start a worker, so that a broken installation does not spin."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    image: bytes
    grid: PatchGrid
    field: str
    pixels: asyncio.Future[Pixels]


class DecodePool:
    """Decodes images in `num_workers` processes; at most `max_waiting` images wait."""

    def __init__(self, settings: DecodeSettings, *, num_workers: int, max_waiting: int, timeout: float) -> None:
        self._settings = settings
        self._timeout = timeout
        self._num_workers = num_workers
        self._max_waiting = max_waiting
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._workers: dict[int, WorkerProcess] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self.num_restarts = 0
        """Workers that were replaced."""
        self.failures: Counter[str] = Counter()
        """Images that could not be decoded, by reason."""
        shape = settings.preprocessing
        self._dtype = np.dtype(np.float32 if shape.mode is PreprocessingMode.MISTRAL else np.uint8)
        side = -(-shape.image_size // shape.patch_size) * shape.patch_size
        self._max_payload_size = 3 * side * side * self._dtype.itemsize

    @property
    def num_waiting(self) -> int:
        """Images that wait for a worker."""
        return len(self._jobs)

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of the workers that are ready, as far as is known yet."""
        return [worker.pid for worker in self._workers.values() if worker.is_alive]

    async def start(self) -> None:
        """Start the workers and wait until all are ready. Raises WorkerBrokenError, OSError."""
        for index in range(self._num_workers):
            self._workers[index] = await self._start_worker()
            self._keepers.append(asyncio.create_task(self._keep(index), name=f"decode-{index}"))

    async def close(self) -> None:
        """End the workers; images that wait get UNAVAILABLE."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers.clear()
        while self._workers:
            await self._workers.popitem()[1].close()
        while self._jobs:
            _fail(self._jobs.popleft(), _closing())

    async def decode(self, image: bytes, *, grid: PatchGrid, field: str) -> Pixels:
        """The image's pixels, resized to `grid`, as `decode_image` returns them.

        Raises InvalidArgumentError naming `field`; ResourceExhaustedError DECODE_QUEUE_FULL; InternalError
        IMAGE_DECODE_FAILED where the worker died. May be cancelled at any time.
        """
        if not self._keepers:
            raise _closing()
        if len(self._jobs) >= self._max_waiting:
            raise ResourceExhaustedError(
                "DECODE_QUEUE_FULL",
                "too many images wait to be decoded",
                metadata={"limit": self._max_waiting},
                retry_after=1.0,
            )
        job = _Job(image, grid, field, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._arrived.set()
        try:
            return await job.pixels
        except asyncio.CancelledError:
            # Who has left takes nobody's place, and the file is not held longer than it is counted.
            with suppress(ValueError):
                self._jobs.remove(job)
            raise

    async def _keep(self, index: int) -> None:
        """The life of one worker and its successors."""
        while True:
            job = await self._next_job()
            try:
                if not self._workers[index].is_alive:
                    await self._replace(index)
                await self._run(job, self._workers[index])
            except asyncio.CancelledError:
                _fail(job, _closing())
                raise
            except Exception as error:
                # Anything: what a worker answers that a picture has taken over must not end its keeper.
                _LOG.warning("decode worker %d lost one image and is replaced: %s", index, type(error).__name__)
                lost = _lost(job, error, self._timeout)
                self.failures[lost.reason] += 1
                _fail(job, lost)
                await self._replace(index)

    async def _next_job(self) -> _Job:
        while not self._jobs:
            self._arrived.clear()
            await self._arrived.wait()
        return self._jobs.popleft()

    async def _run(self, job: _Job, worker: WorkerProcess) -> None:
        """Exchange one job. Raises WorkerBrokenError or TimeoutError where the worker must be replaced."""
        async with asyncio.timeout(self._timeout):
            header, payload = await worker.exchange(job.image)
        if reason := header.get("reason"):
            error = InvalidArgumentError(
                str(reason), str(header.get("message")), field=job.field, metadata=header.get("metadata")
            )
            self.failures[bounded(error.reason, self.failures)] += 1
            _fail(job, error)
            return
        patch = self._settings.preprocessing.patch_size
        shape = (job.grid.height * patch, job.grid.width * patch, 3)
        if len(payload) != int(np.prod(shape)) * self._dtype.itemsize:
            raise WorkerBrokenError
        if not job.pixels.done():
            job.pixels.set_result(np.frombuffer(payload, self._dtype).reshape(shape))

    async def _replace(self, index: int) -> None:
        self.num_restarts += 1
        await self._workers[index].close()
        del self._workers[index]
        while index not in self._workers:
            try:
                self._workers[index] = await self._start_worker()
            except (WorkerBrokenError, OSError) as error:
                _LOG.error("decode worker %d does not start: %s", index, type(error).__name__)
                await asyncio.sleep(_RESTART_PAUSE)

    async def _start_worker(self) -> WorkerProcess:
        return await WorkerProcess.start(self._settings, max_payload_size=self._max_payload_size)


def _fail(job: _Job, error: Exception) -> None:
    if not job.pixels.done():
        job.pixels.set_exception(error)


def _lost(job: _Job, error: Exception, timeout: float) -> InvalidArgumentError | InternalError:
    if isinstance(error, TimeoutError):
        return InvalidArgumentError(
            "IMAGE_TOO_LARGE",
            f"decoding the image takes longer than {timeout:g} seconds",
            field=job.field,
            metadata={"limit": f"{timeout:g}", "unit": "seconds"},
        )
    return InternalError("IMAGE_DECODE_FAILED", "the image could not be decoded", field=job.field)


def _closing() -> UnavailableError:
    return UnavailableError("DRAINING", "this replica is shutting down")
