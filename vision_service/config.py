"""Settings of the vision service.

Knows names, defaults and bounds. Does not know the model: what is bounded by it is checked when it is there.
"""

from dataclasses import dataclass, field
from enum import Enum

from common.image.preprocessing import PreprocessingMode
from common.model.settings import ModelSettings
from common.server.config import ServerConfig, check_image_fits
from common.settings.settings import setting
from common.telemetry.logs import LogSettings
from common.telemetry.tracing import TracingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """How image files become pixels."""

    preprocessing: PreprocessingMode | None = setting(
        None, help="reference that resizing follows; the one that belongs to the checkpoint's format where unset"
    )
    max_image_bytes: int = setting(20 * 2**20, minimum=1, help="largest picture file")
    max_image_pixels: int = setting(50_000_000, minimum=1, help="largest picture, in pixels")
    decode_workers: int = setting(2, minimum=1, maximum=256, help="processes that decode pictures")
    decode_queue: int = setting(256, minimum=1, help="most pictures that wait to be decoded")
    decode_seconds: int = setting(10, minimum=1, help="longest time to decode one picture")
    decode_memory_bytes: int = setting(2 * 2**30, minimum=2**28, help="address space of a decode process")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How pictures are batched for the encoder."""

    max_batch_patches: int = setting(8192, minimum=1, help="most patches in a batch; a larger picture goes alone")
    max_pending_patches: int = setting(262_144, minimum=1, help="patches that may wait before pictures are refused")
    max_pending_bytes: int = setting(
        2**30, minimum=1, help="bytes of picture files and features under way before pictures are refused"
    )
    max_batch_wait: float = setting(0.002, minimum=0.0, maximum=1.0, help="longest wait for company, in seconds")


class FeaturePlace(Enum):
    """Where features stay."""

    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """What is kept of the features that were made."""

    feature_cache_bytes: int = setting(
        512 * 2**20, minimum=0, help="memory for features of pictures that may come again; 0 keeps none"
    )
    feature_cache_place: FeaturePlace = setting(
        FeaturePlace.HOST, help="whose memory that is: the host's, or the device's, for which sending then waits"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """All settings of the service."""

    server: ServerConfig
    model: ModelSettings
    decode: DecodeConfig
    batch: BatchConfig
    cache: CacheConfig
    shared_memory_bytes: int = setting(
        0, minimum=0, maximum=2**36, help="memory offered to decoder services on this host to pass features; 0 for none"
    )
    logs: LogSettings = field(default_factory=LogSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)

    def __post_init__(self) -> None:
        check_image_fits(self.decode.max_image_bytes, self.server.max_message_bytes)
