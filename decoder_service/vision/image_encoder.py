"""Where image features come from, as the decoder service sees it.

The vision client implements it over gRPC; a composition of both services in one process may implement it
directly. Knows no tensors and no transport.
"""

from dataclasses import dataclass
from typing import Protocol

from common.features.feature_spec import FeatureSpec
from common.features.vision_info import VisionInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """Features of one image: rows of `spec.width` values of type `spec.dtype`."""

    spec: FeatureSpec
    data: memoryview


class ImageEncoder(Protocol):
    """Turns pictures into features."""

    @property
    def info(self) -> VisionInfo | None:
        """What the encoder said of itself; None until it first answered, then it stays."""
        ...

    def require_info(self) -> VisionInfo:
        """The same, for a request that needs it. Raises UnavailableError, or FailedPreconditionError on a mismatch."""
        ...

    async def encode(
        self, image: bytes, *, salt: bytes, spec: FeatureSpec, buffer: memoryview, request_id: str
    ) -> None:
        """Fill `buffer` (`spec.num_bytes` bytes) with the features of one picture file.

        Cancelling the call stops the work. Raises a DiptychError.
        """
        ...


class ImageSource(ImageEncoder, Protocol):
    """An encoder with a beginning and an end."""

    async def start(self) -> None:
        """Begin; returns soon."""
        ...

    async def wait_ready(self) -> None:
        """Wait until `info` is there."""
        ...

    async def close(self) -> None:
        """End; what is under way ends with UNAVAILABLE."""
        ...
