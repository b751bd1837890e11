"""What the decoder service tells of itself.

Knows the fixed facts of the served model and their message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.features.vision_info import VisionInfo
from common.features.wire_types import preprocessing_to_proto
from common.version import API_VERSION, server_version
from decoder_service.adapters.adapter_ref import AdapterRef
from diptych.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The served model and the limits of a request."""

    model_name: str
    vocabulary_size: int
    max_model_len: int
    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    max_message_bytes: int
    image_token_id: int | None
    """None for a model that takes no images."""
    end_token_ids: frozenset[int]
    vision_weights_digest: bytes
    adapters: Mapping[str, AdapterRef] = field(default_factory=dict)
    """By their names."""

    def to_wire(self, vision: VisionInfo | None) -> pb.GetModelInfoResponse:
        """The message, with what a vision replica has told, if any has."""
        return pb.GetModelInfoResponse(
            api_version=API_VERSION,
            server_version=server_version(),
            model_name=self.model_name,
            supports_images=self.image_token_id is not None,
            vocabulary_size=self.vocabulary_size,
            max_model_len=self.max_model_len,
            max_images=self.max_images if self.image_token_id is not None else 0,
            max_image_bytes=self.max_image_bytes,
            max_image_pixels=self.max_image_pixels,
            max_message_bytes=self.max_message_bytes,
            image_token_id=self.image_token_id,
            end_token_ids=sorted(self.end_token_ids),
            vision_weights_digest=self.vision_weights_digest,
            adapters=sorted(self.adapters),
            preprocessing=preprocessing_to_proto(vision.preprocessing) if vision else None,
        )
