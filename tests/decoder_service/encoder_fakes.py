"""An encoder that finishes, fails or hangs when a test says so, and pictures for it."""

import asyncio

from common.errors import UnavailableError
from common.features.feature_spec import FeatureSpec
from common.features.vision_info import VisionInfo
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid
from decoder_service.cache.feature_store import PromptImage

ROW = 4
"""Bytes of a one-patch image with one float32 a row."""


class FakeEncoder:
    """Finishes, fails or hangs when the test says so."""

    info: VisionInfo | None = None

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running: dict[str, asyncio.Future[None]] = {}

    def require_info(self) -> VisionInfo:
        raise UnavailableError("VISION_UNAVAILABLE", "there is none")

    async def encode(
        self, image: bytes, *, salt: bytes, spec: FeatureSpec, buffer: memoryview, request_id: str
    ) -> None:
        name = image.decode()
        self.started.append(name)
        self.running[name] = asyncio.get_running_loop().create_future()
        try:
            await self.running[name]
            buffer[:] = image[:1] * len(buffer)
        finally:
            del self.running[name]

    async def finish(self, name: str, error: Exception | None = None) -> None:
        if error is None:
            self.running[name].set_result(None)
        else:
            self.running[name].set_exception(error)
        await settle()


def image(name: str) -> PromptImage:
    """A picture of as many patches as its name has letters."""
    grid = PatchGrid(1, len(name))
    spec = FeatureSpec(image_hash=ImageHash(name.encode()), grid=grid, width=1, dtype="float32")
    return PromptImage(data=name.encode(), spec=spec)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)
