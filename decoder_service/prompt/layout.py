"""A prompt with the features that its images will get.

Knows which image stands where. Does not know where features come from.
"""

from common.features.vision_info import VisionInfo
from decoder_service.cache.feature_store import PromptImage
from decoder_service.prompt.prompt import Prompt, PromptBuilder
from decoder_service.prompt.prompt_spec import PromptSpec, TokenPrompt

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
    images = zip(prompt.images, prompt.image_fields, prompt.placeholders, strict=True)
    return prompt, tuple(
        PromptImage(data=data, spec=info.feature_spec(data, grid=span.grid, salt=salt), field=field)
        for data, field, span in images
    )
