"""The decode worker: a process that turns image files into pixels, one at a time, inside hard limits.

Run as `python -m vision_service.decoding.decode_worker SETTINGS`, with frames on stdin and stdout. Knows the limits
of its own process. Does not know requests or the network, imports no torch and opens no file once it is confined, so
what a hostile picture can take over is worth little; the service replaces a worker that dies (see `decode_pool`).
It ends when its stdin does, and so never outlives the service.
"""

import json
import resource
import select
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from common.errors import InvalidArgumentError
from common.image.header import ImageLimits
from common.image.preprocessing import Preprocessing, PreprocessingMode
from common.image.resizing import Resize
from common.native.resizing import open_resize
from vision_service.decoding.frames import PREFIX, pack_head
from vision_service.decoding.image import decode_image, give_back_pixel_memory, keep_pixel_memory

_KEEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """What a worker is told when it starts."""

    preprocessing: Preprocessing
    limits: ImageLimits
    max_memory_bytes: int
    """Address space of the process, code and libraries included."""
    max_cpu_seconds: int
    """Processor time for one image."""
    kernels: str | None = None
    """The library that pictures are resized with; None where Pillow does it."""

    def to_json(self) -> str:
        """The settings as an argument of the worker's command line."""
        return json.dumps(asdict(self), default=lambda mode: mode.value)

    @classmethod
    def from_json(cls, text: str) -> "DecodeSettings":
        """What `to_json` wrote."""
        fields = json.loads(text)
        shape = fields["preprocessing"]
        shape |= {"mode": PreprocessingMode(shape["mode"]), "mean": tuple(shape["mean"]), "std": tuple(shape["std"])}
        return cls(
            preprocessing=Preprocessing(**shape),
            limits=ImageLimits(**fields["limits"]),
            max_memory_bytes=fields["max_memory_bytes"],
            max_cpu_seconds=fields["max_cpu_seconds"],
            kernels=fields["kernels"],
        )


def main() -> None:
    """Serve frames until stdin ends."""
    settings = DecodeSettings.from_json(sys.argv[1])
    Image.preinit()
    keep_pixel_memory(settings.limits.max_pixels, whole=settings.kernels is not None)
    resize = open_resize(None if settings.kernels is None else Path(settings.kernels))
    # The limits of the request were held against the header; Pillow's own is a second lock on the same door.
    Image.MAX_IMAGE_PIXELS = settings.limits.max_pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    _confine(settings)
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    _send(replies, {"ready": True})
    while prefix := _next_prefix(requests):
        header_size, payload_size = PREFIX.unpack(prefix)
        requests.read(header_size)
        _allow_cpu_seconds(settings.max_cpu_seconds)
        _answer(requests.read(payload_size), settings, resize, replies)


def _next_prefix(requests: BinaryIO) -> bytes:
    """What the next frame begins with, nothing at the end; a worker that waits for long keeps no picture's memory."""
    # Only one request is ever under way, so nothing of the next one has been read before.
    if not select.select((requests,), (), (), _KEEP_SECONDS)[0]:
        give_back_pixel_memory()
    return requests.read(PREFIX.size)


def _answer(data: bytes, settings: DecodeSettings, resize: Resize, replies: BinaryIO) -> None:
    shape, limits = settings.preprocessing, settings.limits
    try:
        pixels = decode_image(data, preprocessing=shape, limits=limits, field="", resize=resize)
    except InvalidArgumentError as error:
        _send(replies, {"reason": error.reason, "message": error.message, "metadata": error.metadata})
    except MemoryError:
        _send(replies, {"reason": "IMAGE_TOO_LARGE", "message": "decoding the image takes too much memory"})
    else:
        _send(replies, {}, np.ascontiguousarray(pixels).data.cast("B"))


def _send(replies: BinaryIO, header: dict[str, object], payload: bytes | memoryview = b"") -> None:
    replies.write(pack_head(header, payload_size=len(payload)))
    replies.write(payload)
    replies.flush()


def _confine(settings: DecodeSettings) -> None:
    """No more memory than allowed, no files, no core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (settings.max_memory_bytes, settings.max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_cpu_seconds(seconds: int) -> None:
    """Let the kernel end this process when it has run for so much longer."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + seconds, hard))


if __name__ == "__main__":
    main()
