"""Vision replicas without a model, for benchmarks: everything is the real thing but the encoder and the decode pool.

Knows how to put such a replica together and how to make small pictures for it. Does not know what is measured.
"""

import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry

from common.image.header import ImageLimits
from common.image.preprocessing import PatchGrid, Preprocessing, PreprocessingMode
from common.server.config import ServerConfig
from common.server.server import GrpcServer
from vision_service.api.arena_door import ArenaDoor
from vision_service.api.servicer import SERVICE_NAME, VisionServicer
from vision_service.decoding.decode_pool import DecodePool
from vision_service.decoding.image import Pixels
from vision_service.model.model_info import EncoderInfo
from vision_service.pipeline.batcher import Batcher, Encode
from vision_service.pipeline.byte_budget import ByteBudget
from vision_service.pipeline.feature_cache import FeatureCache
from vision_service.pipeline.pipeline import Pipeline
from vision_service.telemetry.image_metrics import ImageMetrics

PATCH = 16


def fake_info(*, width: int, dtype: str) -> EncoderInfo:
    """An encoder that makes rows of `width` values."""
    return EncoderInfo(
        model_name="fake",
        weights_digest=b"t" * 32,
        preprocessing=Preprocessing(
            mode=PreprocessingMode.HF, patch_size=PATCH, image_size=1024, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        feature_width=width,
        dtype=dtype,
        limits=ImageLimits(max_bytes=2**20, max_pixels=10**8),
    )


class BlackPool(DecodePool):
    """Decodes every picture to black, without processes."""

    def __init__(self) -> None:
        """Start nothing."""

    async def decode(self, image: bytes, *, grid: PatchGrid, field: str) -> Pixels:
        """Black pixels of the right size."""
        return np.zeros((grid.height * PATCH, grid.width * PATCH, 3), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeReplica:
    """A replica that can be started, and what there is to see of it."""

    server: GrpcServer
    batcher: Batcher
    cache: FeatureCache
    budget: ByteBudget

    async def start(self) -> int:
        """Listen; returns the port."""
        self.batcher.start()
        port = await self.server.start()
        self.server.set_serving([SERVICE_NAME])
        return port

    async def run(self) -> None:
        """Serve until SIGTERM."""
        await self.start()
        await self.server.wait_for_termination()
        await self.batcher.close()


def fake_replica(
    info: EncoderInfo,
    encode: Encode,
    *,
    config: ServerConfig,
    max_batch_patches: int,
    max_kept_bytes: int,
    door: ArenaDoor | None = None,
) -> FakeReplica:
    """A replica whose encoder is a function."""
    batcher = Batcher(encode, max_batch_patches=max_batch_patches, max_pending_patches=65_536, max_wait=0.002)
    budget = ByteBudget(2**30)
    cache = FeatureCache(budget, max_kept_bytes=max_kept_bytes)
    registry = CollectorRegistry()
    metrics = ImageMetrics(registry, max_batch_patches=max_batch_patches)
    pipeline = Pipeline(info, budget=budget, cache=cache, decode_pool=BlackPool(), batcher=batcher, metrics=metrics)
    server = GrpcServer(config, registry=registry)
    VisionServicer(pipeline, door=door).add_to_server(server.grpc)
    return FakeReplica(server=server, batcher=batcher, cache=cache, budget=budget)


def picture(number: int, *, side: int) -> bytes:
    """A small PNG file; another one for each number."""
    rows = b"".join(b"\0" + struct.pack(">Q", number) * (side * 3 // 8) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    )


def pictures(*, side: int) -> Iterator[bytes]:
    """Files that all differ."""
    return (picture(number, side=side) for number in itertools.count())
