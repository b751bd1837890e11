"""An encoder in the decoder's own process, as the decoder sees it.

Knows both services' parts: it is an `ImageEncoder` for the one, over the pipeline of the other. The features take the
same steps as over the wire, but for the wire: the same identity, header, checksums and checks. Does not know settings
or servers.
"""

import asyncio
import logging
import signal
from contextlib import closing, suppress

from common.errors import UnavailableError
from common.features.chunk_copy import CopyChunk, copy_plainly
from common.features.feature_memory import PageMaker
from common.features.feature_spec import FeatureSpec
from common.features.features import FeatureReceiver
from common.features.packing import feature_messages
from common.features.vision_info import VisionInfo
from decoder_service.vision.agreement import Expected, read_info
from decoder_service.vision.loop_turns import LoopTurns
from vision_service.service import VisionService

_log = logging.getLogger(__name__)


class LocalEncoder:
    """An `ImageSource` without a network."""

    def __init__(self, service: VisionService, *, expected: Expected, copy: CopyChunk = copy_plainly) -> None:
        """Use a loaded service; `copy` puts features in their place.

        Raises ValueError where its encoder is not the expected one.
        """
        self._copy = copy
        self._service = service
        self._turns = LoopTurns()
        self._pages = PageMaker()
        message = service.info.to_wire()
        info = read_info(message)
        if info is None or expected.objection(message.api_version, info):
            raise ValueError("the encoder and the decoder are not of one model")
        self._agreed = info
        self._watching: asyncio.Task[None] | None = None

    @property
    def info(self) -> VisionInfo | None:
        """What the encoder said of itself; None before it was started."""
        return self._agreed if self._watching is not None else None

    def require_info(self) -> VisionInfo:
        """The same, for a request that needs it. Raises UnavailableError."""
        if self.info is None:
            raise UnavailableError("VISION_UNAVAILABLE", "the encoder is not ready", retry_after=1.0)
        return self.info

    async def start(self) -> None:
        """Start what decodes and encodes."""
        await self._service.start()
        self._watching = asyncio.create_task(self._stop_when_lost(), name="local encoder")

    async def wait_ready(self) -> None:
        """Return: what was started is ready."""

    async def close(self) -> None:
        """End all; whoever still waits gets UNAVAILABLE."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
        await self._service.close()

    async def encode(
        self, image: bytes, *, salt: bytes, spec: FeatureSpec, buffer: memoryview, request_id: str
    ) -> None:
        """Fill `buffer` with the features of one picture file. Cancelling the call stops the work.

        Raises a DiptychError, and no other error: what fails, fails for this image alone.
        """
        async with self._service.pipeline.features(image, salt=salt, request_id=request_id) as features:
            await self._pages.make(buffer)
            with closing(FeatureReceiver(spec, buffer, copy=self._copy)) as receiver:
                for message in feature_messages(features.messages, timings=features.timings):
                    await self._turns.take()
                    receiver.receive(message)
                receiver.finish()

    async def _stop_when_lost(self) -> None:
        """A lost device comes back with a new process only, and the decoder may well be on it."""
        await self._service.device_lost.wait()
        _log.critical("the encoder's device is lost; stopping")
        signal.raise_signal(signal.SIGTERM)
