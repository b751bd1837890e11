"""What a vision encoder says of itself, and whether this decoder may use it.

Knows the handshake's message and what must be equal on both sides. Does not know how the message came here: over
gRPC from a replica, or from an encoder in the same process.
"""

from dataclasses import dataclass

from common.features.vision_info import VisionInfo
from common.features.wire_types import dtype_from_proto, preprocessing_from_proto
from common.version import VISION_API_VERSION
from diptych.v1 import vision_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an encoder must hold to be of use."""

    weights_digest: bytes
    feature_width: int
    api_version: str = VISION_API_VERSION

    def objection(self, api_version: str, info: VisionInfo) -> str:
        """Why it cannot be used; empty where it speaks our version of the API and holds our checkpoint's weights."""
        if _major(api_version) != _major(self.api_version):
            return f"it speaks version {api_version} of the API, this service {self.api_version}"
        if info.weights_digest != self.weights_digest:
            return "its encoder's weights are not those of this service's checkpoint"
        if info.feature_width != self.feature_width:
            return (
                f"its features are {info.feature_width} wide, those of this service's checkpoint {self.feature_width}"
            )
        return ""


def read_info(model: pb.VisionServiceGetModelInfoResponse) -> VisionInfo | None:
    """What an encoder said; None where it speaks of things that we do not know."""
    try:
        return VisionInfo(
            preprocessing=preprocessing_from_proto(model.preprocessing),
            weights_digest=model.weights_digest,
            feature_width=model.feature_width,
            dtype=dtype_from_proto(model.dtype),
        )
    except ValueError:
        return None


def _major(api_version: str) -> str:
    return api_version.partition(".")[0]
