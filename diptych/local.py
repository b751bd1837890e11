"""`python -m diptych.local`: the decoder service with the encoder in its own process, for those who have one GPU.

Knows how the two are put together. Does not know what either does; `diptych up --local-vision` starts it.
"""

import common.server.silent_grpc  # noqa: F401 - before gRPC is imported
from common.server.early_signals import leave_at_once

if __name__ == "__main__":
    leave_at_once()

# isort: split
import sys
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry

from common.model.cores import num_threads
from common.model.settings import DtypeChoice, ModelSettings
from common.server.config import check_image_fits
from common.server.start import read_config, run_named
from common.settings.settings import setting
from decoder_service.config import DecoderConfig
from vision_service.config import BatchConfig, CacheConfig, DecodeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig(DecoderConfig):
    """The decoder service's settings and the encoder's; what both have is given once."""

    decode: DecodeConfig
    batch: BatchConfig
    cache: CacheConfig
    vision_device: str | None = setting(None, help="device of the encoder; the decoder's where unset")
    vision_dtype: DtypeChoice | None = setting(
        None, help="type that the encoder computes in; the decoder's where unset"
    )

    def __post_init__(self) -> None:
        # By its name: in a class with slots, which is made twice, `super()` knows the first one.
        DecoderConfig.__post_init__(self)
        if self.vision_addresses:
            raise ValueError("--vision-addresses is given, but the encoder is in this process")
        check_image_fits(self.decode.max_image_bytes, self.server.max_message_bytes)
        try:
            _ = self.vision_model
        except ValueError as error:
            raise ValueError(f"the encoder, which has --vision-device and --vision-dtype: {error}") from None

    @property
    def vision_model(self) -> ModelSettings:
        """What the encoder runs, and on what."""
        device, dtype = self.vision_device or self.model.device, self.vision_dtype or self.model.dtype
        # The checksums are checked once, beside the decoder's loading.
        return replace(self.model, device=device, dtype=dtype, verify_checksums=False)

    def sharing_threads(self, total: int) -> "LocalConfig":
        """The same with so many threads for both halves together, where the settings do not give each its own."""
        if self.model.threads is not None:
            return self
        return replace(self, model=replace(self.model, threads=max(1, total // 2)))


def main() -> None:
    """Parse flags, load, serve; a wrong setting or checkpoint ends it with one line and a status that is not 0."""
    description = "The decoder service with the encoder in its own process."
    config = read_config(LocalConfig, name="diptych.local", description=description)
    sys.exit(run(config))


def run(config: LocalConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    # Imported late: torch takes seconds, and a wrong flag should not.
    from common.native.chunks import open_copy
    from decoder_service.service import DecoderService
    from decoder_service.vision.agreement import Expected
    from diptych.local_encoder import LocalEncoder
    from vision_service.service import VisionService

    # Else whichever half is made first would take all of them, and leave the other one.
    config = config.sharing_threads(num_threads())
    registry = CollectorRegistry()
    encoders: list[VisionService] = []

    def make_encoder(expected: Expected) -> LocalEncoder:
        encoder = VisionService(
            config.vision_model, decode=config.decode, batch=config.batch, cache=config.cache, registry=registry
        )
        encoders.append(encoder)
        return LocalEncoder(encoder, expected=expected, copy=open_copy(config.model.compute))

    try:
        service = DecoderService(config, make_encoder=make_encoder)
    except ValueError as error:
        sys.stderr.write(f"diptych.local: {error}\n")
        return 2
    status = run_named(service.run(registry), name="diptych.local")
    return 1 if any(encoder.device_lost.is_set() for encoder in encoders) else status


if __name__ == "__main__":
    main()
