"""What the vision service tells of itself, and decoder services compare with their own side.

Knows the fixed facts of the served encoder, the identity and the shape of what it makes, and their message.
"""

from dataclasses import dataclass

from common.features.feature_spec import FeatureSpec
from common.features.wire_types import dtype_to_proto, preprocessing_to_proto
from common.image.header import ImageLimits
from common.image.identity import image_hash
from common.image.preprocessing import PatchGrid, Preprocessing
from common.version import VISION_API_VERSION
from diptych.v1 import vision_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInfo:
    """The served encoder."""

    model_name: str
    weights_digest: bytes
    preprocessing: Preprocessing
    feature_width: int
    dtype: str
    limits: ImageLimits

    @property
    def max_patches(self) -> int:
        """Most patches that any picture can have."""
        return self.preprocessing.patch_grid(self.preprocessing.image_size, self.preprocessing.image_size).num_patches

    def feature_spec(self, image: bytes, *, grid: PatchGrid, salt: bytes) -> FeatureSpec:
        """Identity and shape of an image's features; hashes the whole file."""
        identity = image_hash(
            image,
            preprocessing=self.preprocessing,
            weights_digest=self.weights_digest,
            dtype=self.dtype,
            salt=salt,
        )
        return FeatureSpec(image_hash=identity, grid=grid, width=self.feature_width, dtype=self.dtype)

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
