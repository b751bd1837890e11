"""Whether the largest batch fits, decided before the service says that it serves.

Knows the encoder's shape, the device's memory and the settings that bound a batch. A GPU is asked by encoding
such a batch; a host promises more memory than it has, so there the need is worked out.
"""

import logging

import numpy as np
import torch

from common.devices import free_bytes
from common.errors import ResourceExhaustedError
from common.model_config import PixtralVisionConfig
from common.preprocessing import PatchGrid, Preprocessing
from vision_service.runner import EncoderRunner

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
) -> None:
    """Have the encoder work once, and prove that the largest batch fits beside `host_bytes` of other buffers.

    On another device than the host there must be `device_bytes` left beside it, for features that stay there.

    Raises ValueError, naming need, room and setting.
    """
    runner.warm_up([(1, 1)])
    largest = preprocessing.patch_grid(preprocessing.image_size, preprocessing.image_size)
    num_images = max(1, max_batch_patches // largest.num_patches)
    if device.type == "cpu":
        _check_host(config, dtype, num_patches=num_images * largest.num_patches, host_bytes=host_bytes)
        return
    try:
        runner.encode([_black(largest, preprocessing.patch_size)] * num_images)
    except ResourceExhaustedError:
        raise ValueError(
            f"a batch of {num_images * largest.num_patches} patches does not fit into the memory of {device}; "
            "lower --max-batch-patches"
        ) from None
    if device_bytes > (room := free_bytes(device)):
        raise ValueError(f"--feature-cache-bytes {device_bytes} is more than {device} has left, {room}")


def batch_bytes(config: PixtralVisionConfig, dtype: torch.dtype, *, num_patches: int) -> int:
    """Upper estimate of a batch's working memory: pixels as float32, and the widest layer's rows."""
    pixels = 3 * config.patch_size**2
    row = 8 * config.vision_hidden_size + 3 * config.vision_intermediate_size
    return num_patches * (2 * pixels * 4 + row * dtype.itemsize)


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


def _black(grid: PatchGrid, patch_size: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.zeros((grid.height * patch_size, grid.width * patch_size, 3), np.uint8)
