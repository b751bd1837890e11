"""The vision service put together: checkpoint, encoder, decode pool, batcher and the pipeline through them.

Knows which part needs which. Does not know ports, signals or command lines (see `__main__`); whoever
composes both services in one process uses this as it is.
"""

import asyncio
import logging
from importlib.util import find_spec

import torch
from prometheus_client import CollectorRegistry

from common.checkpoint.checkpoint import Checkpoint, open_checkpoint
from common.checkpoint.config import read_preprocessing
from common.checkpoint.layout import Part
from common.features.feature_spec import VALUE_TYPES
from common.image.header import ImageLimits
from common.image.preprocessing import PreprocessingMode
from common.model.devices import find_device, find_dtype
from common.model.graph_recorder import CudaGraphRecorder
from common.model.settings import ComputeChoice, ModelSettings
from common.native.opening import choose_library, weight_types
from common.native.resizing import find_kernels
from common.process import give_memory_back
from vision_service.collector import VisionCollector
from vision_service.config import BatchConfig, CacheConfig, DecodeConfig, FeaturePlace
from vision_service.decoding.decode_pool import DecodePool
from vision_service.decoding.decode_worker import DecodeSettings
from vision_service.model.encoder_choice import checked_attention
from vision_service.model.memory_plan import warm_up
from vision_service.model.model_info import EncoderInfo
from vision_service.model.runner import EncoderRunner
from vision_service.model.segment_attention import SegmentAttention, choose_segment_attention
from vision_service.model.weights import load_encoder
from vision_service.pipeline.batcher import Batcher
from vision_service.pipeline.byte_budget import ByteBudget
from vision_service.pipeline.feature_cache import FeatureCache
from vision_service.pipeline.pipeline import Pipeline
from vision_service.telemetry.image_metrics import ImageMetrics

_log = logging.getLogger(__name__)


class VisionService:
    """A loaded encoder and everything before it."""

    def __init__(
        self,
        model: ModelSettings,
        *,
        decode: DecodeConfig,
        batch: BatchConfig,
        cache: CacheConfig,
        registry: CollectorRegistry,
    ) -> None:
        """Load the model, which takes a while. Raises CheckpointError or another ValueError, in one line."""
        device = find_device(model.device)
        dtype = find_dtype(model.dtype, device)
        checkpoint = open_checkpoint(model.model, verify_checksums=model.verify_checksums)
        self.info = _read_info(checkpoint, model, decode, dtype)
        keeps_on_device = cache.feature_cache_place is FeaturePlace.DEVICE
        _check_bytes(self.info, batch.max_pending_bytes, keeps_on_device=keeps_on_device)
        runner = _load_runner(
            checkpoint,
            self.info,
            model,
            device=device,
            dtype=dtype,
            keeps_on_device=keeps_on_device,
        )
        checkpoint.finish_checks()
        _warm_up(runner, checkpoint, self.info, device=device, batch=batch, cache=cache)
        self._decode_pool = _make_decode_pool(self.info, decode, model.compute)
        metrics = ImageMetrics(registry, max_batch_patches=batch.max_batch_patches)
        budget = ByteBudget(batch.max_pending_bytes)
        features = FeatureCache(budget, max_kept_bytes=cache.feature_cache_bytes)
        self._batcher = Batcher(
            runner.encode,
            max_batch_patches=batch.max_batch_patches,
            max_pending_patches=batch.max_pending_patches,
            max_wait=batch.max_batch_wait,
            on_batch=metrics.batch_encoded,
            make_room=features.drop_kept if keeps_on_device else None,
        )
        self.pipeline = Pipeline(
            self.info,
            budget=budget,
            cache=features,
            decode_pool=self._decode_pool,
            batcher=self._batcher,
            metrics=metrics,
        )
        registry.register(
            VisionCollector(budget=budget, cache=features, decode_pool=self._decode_pool, batcher=self._batcher)
        )

    @property
    def device_lost(self) -> asyncio.Event:
        """Set when the device is gone, which only a new process cures."""
        return self._batcher.device_lost

    async def start(self) -> None:
        """Start the decode workers and the batcher."""
        await self._decode_pool.start()
        self._batcher.start()

    async def close(self) -> None:
        """End both; whoever still waits gets UNAVAILABLE. No process, thread or task is left."""
        await self._decode_pool.close()
        await self._batcher.close()


def _read_info(checkpoint: Checkpoint, model: ModelSettings, decode: DecodeConfig, dtype: torch.dtype) -> EncoderInfo:
    vision = checkpoint.vision_config
    return EncoderInfo(
        model_name=model.served_name,
        weights_digest=checkpoint.digest(Part.VISION),
        preprocessing=read_preprocessing(model.model, vision, decode.preprocessing),
        feature_width=vision.vision_hidden_size,
        dtype=str(dtype).removeprefix("torch."),
        limits=ImageLimits(max_bytes=decode.max_image_bytes, max_pixels=decode.max_image_pixels),
    )


def _check_bytes(info: EncoderInfo, max_pending_bytes: int, *, keeps_on_device: bool) -> None:
    """Raise ValueError where not even one picture would be admitted."""
    features = info.max_patches * info.feature_width * VALUE_TYPES[info.dtype].size
    # What stays on the device is copied to be sent.
    needed = 2 * info.limits.max_bytes + features * (2 if keeps_on_device else 1)
    if needed > max_pending_bytes:
        raise ValueError(
            f"--max-pending-bytes {max_pending_bytes} is less than one picture may need, {needed}; "
            "raise it or lower --max-image-bytes"
        )


def _load_runner(
    checkpoint: Checkpoint,
    info: EncoderInfo,
    settings: ModelSettings,
    *,
    device: torch.device,
    dtype: torch.dtype,
    keeps_on_device: bool,
) -> EncoderRunner:
    kernels = choose_library(settings, device=device, dtype=dtype)
    types = weight_types(kernels.library, dtype)
    runner = EncoderRunner(
        load_encoder(checkpoint, device=device, types=types),
        info.preprocessing,
        device=device,
        dtype=dtype,
        deterministic=settings.deterministic,
        library=kernels.library,
        keeps_on_device=keeps_on_device,
        segment_attention=_segment_attention(checkpoint, device, dtype),
        fused=device.type == "cuda" and settings.compute is not ComputeChoice.TORCH and find_spec("triton") is not None,
    )
    give_memory_back()
    extra = {"model": info.model_name, "device": str(device), "dtype": info.dtype}
    extra |= {"no_kernels": kernels.why_not} if kernels.library is None else {"compute": kernels.library.name}
    _log.info("loaded", extra=extra)
    return runner


def _segment_attention(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> SegmentAttention | None:
    attention = choose_segment_attention(device, dtype)
    if attention is None:
        return None
    vision = checkpoint.vision_config
    num_heads, head_dim = vision.vision_num_attention_heads, vision.vision_head_dim
    return checked_attention(attention, num_heads=num_heads, head_dim=head_dim, device=device, dtype=dtype)


def _warm_up(
    runner: EncoderRunner,
    checkpoint: Checkpoint,
    info: EncoderInfo,
    *,
    device: torch.device,
    batch: BatchConfig,
    cache: CacheConfig,
) -> None:
    on_device = cache.feature_cache_place is FeaturePlace.DEVICE and device.type != "cpu"
    warm_up(
        runner,
        checkpoint.vision_config,
        info.preprocessing,
        device=device,
        dtype=runner.activation_dtype,
        max_batch_patches=batch.max_batch_patches,
        host_bytes=batch.max_pending_bytes + (0 if on_device else cache.feature_cache_bytes),
        device_bytes=cache.feature_cache_bytes if on_device else 0,
        recorder=CudaGraphRecorder(device) if device.type == "cuda" else None,
    )


def _make_decode_pool(info: EncoderInfo, decode: DecodeConfig, compute: ComputeChoice) -> DecodePool:
    # Found here and not by a worker, which knows nothing of the service's environment and builds nothing.
    kernels = find_kernels(compute) if info.preprocessing.mode is PreprocessingMode.HF else None
    settings = DecodeSettings(
        preprocessing=info.preprocessing,
        limits=info.limits,
        max_memory_bytes=decode.decode_memory_bytes,
        max_cpu_seconds=decode.decode_seconds,
        kernels=None if kernels is None else str(kernels),
    )
    return DecodePool(
        settings,
        num_workers=decode.decode_workers,
        max_waiting=decode.decode_queue,
        timeout=float(decode.decode_seconds),
    )
