"""A vision service over loopback whose encoder is a fake."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
from prometheus_client import CollectorRegistry

from common.image.header import ImageLimits
from common.image.preprocessing import PreprocessingMode
from common.server.config import ServerConfig
from common.server.server import GrpcServer
from diptych.v1 import vision_pb2_grpc
from tests.pictures import noise, preprocessing, save
from vision_service.api.servicer import VisionServicer
from vision_service.decoding.decode_pool import DecodePool
from vision_service.decoding.decode_worker import DecodeSettings
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import HostImage
from vision_service.model.model_info import EncoderInfo
from vision_service.pipeline.batcher import Batcher
from vision_service.pipeline.byte_budget import ByteBudget
from vision_service.pipeline.feature_cache import FeatureCache
from vision_service.pipeline.pipeline import Pipeline
from vision_service.telemetry.image_metrics import ImageMetrics

WIDTH = 64


INFO = EncoderInfo(
    model_name="tiny",
    weights_digest=b"d" * 32,
    preprocessing=preprocessing(PreprocessingMode.HF, image_size=256),
    feature_width=WIDTH,
    dtype="float32",
    limits=ImageLimits(max_bytes=10**6, max_pixels=10**6),
)


PICTURE = save(noise(100, 60))


class FakeEncoder:
    """Gives every patch the mean of its image."""

    def __init__(self) -> None:
        self.num_images = 0
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, images: list[Pixels]) -> list[HostImage]:
        assert self.gate.wait(5)
        self.num_images += len(images)
        return [self._encode(image) for image in images]

    def _encode(self, image: Pixels) -> HostImage:
        num_rows = image.shape[0] * image.shape[1] // 256
        rows = np.full((num_rows, WIDTH), image.mean(), "<f4")
        return HostImage.from_rows(memoryview(rows.tobytes()))


class Service:
    """A running service and a stub for it."""

    def __init__(
        self,
        stub: "vision_pb2_grpc.VisionServiceAsyncStub",
        encoder: FakeEncoder,
        batcher: Batcher,
        cache: FeatureCache,
        budget: ByteBudget,
    ) -> None:
        self.stub = stub
        self.encoder = encoder
        self.batcher = batcher
        self.cache = cache
        self.budget = budget


@asynccontextmanager
async def running(
    *,
    max_pending_patches: int = 10_000,
    max_pending_bytes: int = 10**7,
    max_kept_bytes: int = 0,
    max_waiting: int = 16,
) -> AsyncIterator[Service]:
    encoder = FakeEncoder()
    settings = DecodeSettings(
        preprocessing=INFO.preprocessing, limits=INFO.limits, max_memory_bytes=2 << 30, max_cpu_seconds=5
    )
    pool = DecodePool(settings, num_workers=1, max_waiting=max_waiting, timeout=5.0)
    batcher = Batcher(encoder.encode, max_batch_patches=512, max_pending_patches=max_pending_patches, max_wait=0.001)
    server = GrpcServer(ServerConfig(port=0, max_concurrent_streams=1000), registry=CollectorRegistry())
    budget = ByteBudget(max_pending_bytes)
    cache = FeatureCache(budget, max_kept_bytes=max_kept_bytes)
    pipeline = Pipeline(
        INFO,
        budget=budget,
        cache=cache,
        decode_pool=pool,
        batcher=batcher,
        metrics=ImageMetrics(CollectorRegistry(), max_batch_patches=512),
    )
    VisionServicer(pipeline).add_to_server(server.grpc)
    await pool.start()
    batcher.start()
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Service(vision_pb2_grpc.VisionServiceStub(channel), encoder, batcher, cache, budget)
    finally:
        encoder.gate.set()
        await server.grpc.stop(1)
        await pool.close()
        await batcher.close()
        assert (batcher.pending.num_patches, batcher.pending.num_images, budget.held) == (0, 0, 0)
