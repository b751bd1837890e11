"""A prompt with the features that its images will get.

Knows how an image is named. Does not know where features come from.
"""

from common.features.feature_spec import FeatureSpec
from common.image.identity import image_hash
from decoder_service.cache.feature_store import PromptImage
from decoder_service.prompt.prompt import Prompt, PromptBuilder
from decoder_service.prompt.prompt_spec import PromptSpec, TokenPrompt
from decoder_service.vision.image_encoder import VisionInfo

QUICK_TOKENS = 1024
"""Ids that are looked through in less time than it takes to hand them to a thread and back."""


def is_quick(spec: PromptSpec) -> bool:
    """Whether a prompt is laid out in no time, whatever is in it: token ids that are not many, and no picture."""
    return isinstance(spec, TokenPrompt) and not spec.images and len(spec.token_ids) <= QUICK_TOKENS


def lay_out(
    prompts: PromptBuilder, spec: PromptSpec, info: VisionInfo | None, salt: bytes
) -> tuple[Prompt, tuple[PromptImage, ...]]:
    """Token ids and images of a prompt; slow for much text. Raises what `PromptBuilder.build` raises."""
    prompt = prompts.build(spec, preprocessing=info.preprocessing if info else None)
    if info is None:
        return prompt, ()
    images = []
    for data, field, span in zip(prompt.images, prompt.image_fields, prompt.placeholders, strict=True):
        identity = image_hash(
            data, preprocessing=info.preprocessing, weights_digest=info.weights_digest, dtype=info.dtype, salt=salt
        )
        spec_ = FeatureSpec(image_hash=identity, grid=span.grid, width=info.feature_width, dtype=info.dtype)
        images.append(PromptImage(data=data, spec=spec_, field=field))
    return prompt, tuple(images)
