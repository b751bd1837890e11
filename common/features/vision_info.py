"""What decides the features that a vision service makes of a picture; both services know it, and must agree on it.

Knows settings and identities. Does not know messages or how the two sides compare them.
"""

from dataclasses import dataclass

from common.features.feature_spec import FeatureSpec
from common.image.identity import image_hash
from common.image.preprocessing import PatchGrid, Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionInfo:
    """An encoder, as far as its features depend on it."""

    preprocessing: Preprocessing
    weights_digest: bytes
    feature_width: int
    dtype: str

    def feature_spec(self, image: bytes, *, grid: PatchGrid, salt: bytes) -> FeatureSpec:
        """Identity and shape of an image's features; hashes the whole file."""
        identity = image_hash(
            image, preprocessing=self.preprocessing, weights_digest=self.weights_digest, dtype=self.dtype, salt=salt
        )
        return FeatureSpec(image_hash=identity, grid=grid, width=self.feature_width, dtype=self.dtype)
