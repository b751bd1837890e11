"""The vision service put together: checkpoint, encoder, decode pool, batcher and servicer.

Knows which part needs which. Does not know ports, signals or command lines (see `__main__`); whoever
composes both services in one process uses this as it is.
"""

import asyncio
import logging

import torch
from prometheus_client import CollectorRegistry, Gauge

from common.checkpoint import Checkpoint, open_checkpoint
from common.checkpoint_config import CheckpointError, read_preprocessing
from common.checkpoint_layout import Part
from common.devices import find_device, find_dtype
from common.image_header import ImageLimits
from common.model_config import PixtralConfig
from common.model_settings import ModelSettings
from vision_service.batcher import Batcher
from vision_service.config import BatchConfig, DecodeConfig
from vision_service.decode_pool import DecodePool
from vision_service.decode_worker import DecodeSettings
from vision_service.model_info import EncoderInfo
from vision_service.runner import EncoderRunner
from vision_service.servicer import VisionServicer

_log = logging.getLogger(__name__)


class VisionService:
    """A loaded encoder and everything before it."""

    def __init__(
        self,
        model: ModelSettings,
        *,
        decode: DecodeConfig,
        batch: BatchConfig,
        registry: CollectorRegistry,
    ) -> None:
        """Load the model, which takes a while. Raises CheckpointError or another ValueError, in one line."""
        device = find_device(model.device)
        dtype = find_dtype(model.dtype, device)
        checkpoint = open_checkpoint(model.model)
        self.info = _read_info(checkpoint, model, decode, dtype)
        runner = _load_runner(checkpoint, self.info, device, dtype)
        self._decode_pool = _make_decode_pool(self.info, decode)
        self._batcher = Batcher(
            runner.encode,
            max_batch_patches=batch.max_batch_patches,
            max_pending_patches=batch.max_pending_patches,
            max_wait=batch.max_batch_wait,
        )
        self.servicer = VisionServicer(self.info, decode_pool=self._decode_pool, batcher=self._batcher)
        _export(self._batcher, registry)

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
    if not isinstance(checkpoint.config, PixtralConfig):
        raise CheckpointError(f"{model.model}: the model takes no pictures")
    vision = checkpoint.config.vision
    return EncoderInfo(
        model_name=model.served_name,
        weights_digest=checkpoint.digest(Part.VISION),
        preprocessing=read_preprocessing(model.model, vision, decode.preprocessing),
        feature_width=vision.vision_hidden_size,
        dtype=str(dtype).removeprefix("torch."),
        limits=ImageLimits(max_bytes=decode.max_image_bytes, max_pixels=decode.max_image_pixels),
    )


def _load_runner(checkpoint: Checkpoint, info: EncoderInfo, device: torch.device, dtype: torch.dtype) -> EncoderRunner:
    runner = EncoderRunner.load(checkpoint, info.preprocessing, device=device, dtype=dtype)
    largest = info.preprocessing.patch_grid(info.preprocessing.image_size, info.preprocessing.image_size)
    # On a GPU the largest image too, so that its memory is known to be there before anybody asks for it.
    runner.warm_up([(1, 1)] if device.type == "cpu" else [(1, 1), largest])
    _log.info("loaded", extra={"model": info.model_name, "device": str(device), "dtype": info.dtype})
    return runner


def _make_decode_pool(info: EncoderInfo, decode: DecodeConfig) -> DecodePool:
    settings = DecodeSettings(
        preprocessing=info.preprocessing,
        limits=info.limits,
        max_memory_bytes=decode.decode_memory_bytes,
        max_cpu_seconds=decode.decode_seconds,
    )
    return DecodePool(
        settings,
        num_workers=decode.decode_workers,
        max_waiting=decode.decode_queue,
        timeout=float(decode.decode_seconds),
    )


def _export(batcher: Batcher, registry: CollectorRegistry) -> None:
    patches = Gauge("diptych_vision_pending_patches", "Patches admitted and not yet encoded.", registry=registry)
    patches.set_function(lambda: batcher.pending_patches)
    images = Gauge("diptych_vision_pending_images", "Images admitted and not yet encoded.", registry=registry)
    images.set_function(lambda: batcher.pending_images)
