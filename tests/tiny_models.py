"""Small random checkpoints, written by transformers, and what transformers makes of them.

The oracle of the parity tests: nothing in here is code of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PixtralVisionConfig,
    PreTrainedModel,
)

Model = TypeVar("Model", bound=PreTrainedModel)

IMAGE, BREAK, END = 10, 12, 13
VOCAB_SIZE = 160


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Dimensions of a random model."""

    name: str
    hidden: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    layers: int = 2
    rope_theta: float = 1e6
    window: int | None = None
    tied: bool = False
    vision_heads: int = 2
    vision_layers: int = 2
    vision_head_dim: int = 16
    patch: int = 4
    projector_bias: bool = True


def random_text_model(shape: Shape) -> MistralForCausalLM:
    """A Mistral with weights large enough that its answers differ from token to token."""
    return _randomised(MistralForCausalLM(MistralConfig(**_text(shape))))


def random_pixtral(shape: Shape) -> LlavaForConditionalGeneration:
    """A Pixtral, likewise."""
    config = LlavaConfig(
        text_config=MistralConfig(**_text(shape)),
        vision_config=PixtralVisionConfig(
            hidden_size=shape.vision_heads * shape.vision_head_dim,
            num_attention_heads=shape.vision_heads,
            intermediate_size=56,
            num_hidden_layers=shape.vision_layers,
            patch_size=shape.patch,
            image_size=16 * shape.patch,
            hidden_act="silu",
            rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
        ),
        image_token_index=IMAGE,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=shape.projector_bias,
    )
    model = _randomised(LlavaForConditionalGeneration(config))
    with torch.no_grad():
        # Never generated: the reference takes any placeholder for a picture, also one in its own output.
        model.lm_head.weight[IMAGE] = 0
    return model


def save(model: PreTrainedModel, directory: Path) -> Path:
    """Write the model as transformers does."""
    model.save_pretrained(directory)
    return directory


def image_tokens(height: int, width: int) -> list[int]:
    """Tokens of an image: rows of placeholders, a break after each and an end after the last."""
    return ([IMAGE] * width + [BREAK]) * (height - 1) + [IMAGE] * width + [END]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids with the pixels of their images, [channels, height, width] each."""

    token_ids: list[int]
    images: list[Tensor] = field(default_factory=list)


def reference_logits(model: PreTrainedModel, prompt: Prompt, output: Sequence[int]) -> Tensor:
    """Logits [len(output), vocab_size] from which each output token was to be chosen, in one plain pass."""
    ids = torch.tensor([[*prompt.token_ids, *output]])
    images = {}
    if prompt.images:
        sizes = torch.tensor([image.shape[1:] for image in prompt.images])
        pixels = torch.zeros(len(sizes), 3, int(sizes[:, 0].max()), int(sizes[:, 1].max()))
        for row, image in zip(pixels, prompt.images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        images = {"pixel_values": pixels, "image_sizes": sizes}
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, **images).logits[0]
    return logits[len(prompt.token_ids) - 1 : -1].float()


def _text(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": 72,
        "num_hidden_layers": shape.layers,
        "vocab_size": VOCAB_SIZE,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "sliding_window": shape.window,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": shape.tied,
    }


def _randomised(model: Model) -> Model:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, 1.2 * parameter[0].numel() ** -0.5, generator=generator)
    model.train(mode=False)
    return model
