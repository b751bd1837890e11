"""What the vision service tells of itself, and decoder services compare with their own side.

Knows the fixed facts of the served encoder and their message.
"""

from dataclasses import dataclass

from common.features.vision_info import VisionInfo
from common.features.wire_types import dtype_to_proto, preprocessing_to_proto
from common.image.header import ImageLimits
from common.version import VISION_API_VERSION
from diptych.v1 import vision_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInfo(VisionInfo):
    """The served encoder."""

    model_name: str
    limits: ImageLimits

    @property
    def max_patches(self) -> int:
        """Most patches that any picture can have."""
        return self.preprocessing.patch_grid(self.preprocessing.image_size, self.preprocessing.image_size).num_patches

    def to_wire(self) -> vision_pb2.VisionServiceGetModelInfoResponse:
        """The message."""
        return vision_pb2.VisionServiceGetModelInfoResponse(
            api_version=VISION_API_VERSION,
            model_name=self.model_name,
            weights_digest=self.weights_digest,
            preprocessing=preprocessing_to_proto(self.preprocessing),
            feature_width=self.feature_width,
            dtype=dtype_to_proto(self.dtype),
            max_image_bytes=self.limits.max_bytes,
            max_image_pixels=self.limits.max_pixels,
            max_patches=self.max_patches,
        )
