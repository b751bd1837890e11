"""Whether the largest batch fits, decided before the service says that it serves.

Knows the encoder's shape, the device's memory and the settings that bound a batch. A GPU is asked by encoding
such a batch; a host promises more memory than it has, so there the need is worked out.
"""

import logging

import numpy as np
import torch

from common.errors import ResourceExhaustedError
from common.image.preprocessing import PatchGrid, Preprocessing
from common.model.config import PixtralVisionConfig
from common.model.devices import free_bytes
from common.model.graph_recorder import GraphRecorder
from vision_service.decoding.image import Pixels
from vision_service.model.runner import EncoderRunner

_log = logging.getLogger(__name__)


def warm_up(
    runner: EncoderRunner,
    config: PixtralVisionConfig,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_batch_patches: int,
    host_bytes: int,
    device_bytes: int = 0,
    recorder: GraphRecorder | None = None,
) -> None:
    """Have the encoder work once, and prove that the largest batch fits beside `host_bytes` of other buffers.

    On another device than the host there must be `device_bytes` left beside it, for features that stay there. With a
    `recorder` passes are recorded first, and given up again where the largest batch does not fit beside them.

    Raises ValueError, naming need, room and setting.
    """
    runner.warm_up([(1, 1)])
    largest = preprocessing.patch_grid(preprocessing.image_size, preprocessing.image_size)
    num_images = max(1, max_batch_patches // largest.num_patches)
    num_patches = num_images * largest.num_patches
    if device.type == "cpu":
        _check_host(config, dtype, num_patches=num_patches, host_bytes=host_bytes)
        return
    if recorder is not None:
        sizes = runner.record(recorder, max_batch_patches=max_batch_patches)
        _log.info("passes of the encoder recorded", extra={"num_patches": list(sizes)})
    images = [_black(largest, preprocessing.patch_size)] * num_images
    try:
        _try_device(runner, images, num_patches=num_patches, device=device, device_bytes=device_bytes)
    except ValueError as error:
        if not runner.forget_recorded():
            raise
        _log.warning("passes of the encoder run unrecorded: no memory beside them", extra={"reason": str(error)})
        _try_device(runner, images, num_patches=num_patches, device=device, device_bytes=device_bytes)


def batch_bytes(config: PixtralVisionConfig, dtype: torch.dtype, *, num_patches: int) -> int:
    """Upper estimate of a batch's working memory: pixels as float32, and the widest layer's rows."""
    pixels = 3 * config.patch_size**2
    row = 8 * config.vision_hidden_size + 3 * config.vision_intermediate_size
    return num_patches * (2 * pixels * 4 + row * dtype.itemsize)


def _try_device(
    runner: EncoderRunner, images: list[Pixels], *, num_patches: int, device: torch.device, device_bytes: int
) -> None:
    try:
        runner.encode(images)
    except ResourceExhaustedError:
        raise ValueError(
            f"a batch of {num_patches} patches does not fit into the memory of {device}; lower --max-batch-patches"
        ) from None
    if device_bytes > (room := free_bytes(device)):
        raise ValueError(f"--feature-cache-bytes {device_bytes} is more than {device} has left, {room}")


def _check_host(config: PixtralVisionConfig, dtype: torch.dtype, *, num_patches: int, host_bytes: int) -> None:
    needed, room = batch_bytes(config, dtype, num_patches=num_patches), free_bytes(torch.device("cpu"))
    if needed > room:
        raise ValueError(
            f"a batch of {num_patches} patches needs {needed} bytes, {room} are free; lower --max-batch-patches"
        )
    if needed + host_bytes > room:
        # Bounds that are never reached cost nothing, so this is no reason not to serve.
        extra = {"needed": needed + host_bytes, "free": room}
        _log.warning("--feature-cache-bytes and --max-pending-bytes may need more memory than is free", extra=extra)


def _black(grid: PatchGrid, patch_size: int) -> Pixels:
    return np.zeros((grid.height * patch_size, grid.width * patch_size, 3), np.uint8)
