"""Which tensor of a checkpoint belongs to which part of the model, under which name.

Knows names. Does not know files or values. The local names are those of our modules, which are those of
Hugging Face checkpoints, so that only Mistral's own names need a table. `place` and `stored_name` undo each other.
"""

import re
from enum import Enum
from typing import NamedTuple

from common.checkpoint.files import CheckpointFormat


class Part(Enum):
    """A module that is loaded as a whole; the encoder lives in one service, the others in the other."""

    VISION = "vision_tower"
    PROJECTOR = "multi_modal_projector"
    DECODER = "language_model"


class Place(NamedTuple):
    """Where a tensor goes."""

    part: Part
    name: str
    """Name inside the part's module."""
    permuted_heads: bool = False
    """Whether rows must go from paired to half-split rotary order, as for Mistral's own wq and wk."""


def place(name: str, *, layout: CheckpointFormat, has_vision: bool) -> Place | None:
    """Place of the checkpoint's tensor `name`; None where it belongs to nothing that we know."""
    if layout is CheckpointFormat.NATIVE:
        return _place_native(name)
    return _place_hf(name) if has_vision else Place(Part.DECODER, name)


def stored_name(part: Part, name: str, *, layout: CheckpointFormat, has_vision: bool) -> str:
    """The tensor's name in a checkpoint; for Hugging Face's in the layout that transformers writes."""
    if layout is CheckpointFormat.NATIVE:
        return _stored_native(part, name)
    return f"{part.value}.{name}" if has_vision else name


# Transformers has two layouts: the first is the one on disk, the second the one in memory since 4.52.
_HF_PREFIXES = (
    ("language_model.model.", Part.DECODER, "model."),
    ("language_model.lm_head.", Part.DECODER, "lm_head."),
    ("vision_tower.", Part.VISION, ""),
    ("multi_modal_projector.", Part.PROJECTOR, ""),
    ("model.language_model.", Part.DECODER, "model."),
    ("lm_head.", Part.DECODER, "lm_head."),
    ("model.vision_tower.", Part.VISION, ""),
    ("model.multi_modal_projector.", Part.PROJECTOR, ""),
)


def _place_hf(name: str) -> Place | None:
    for prefix, part, replacement in _HF_PREFIXES:
        if name.startswith(prefix):
            return Place(part, replacement + name.removeprefix(prefix))
    return None


_NATIVE_NAMES = {
    "tok_embeddings.weight": Place(Part.DECODER, "model.embed_tokens.weight"),
    "norm.weight": Place(Part.DECODER, "model.norm.weight"),
    "output.weight": Place(Part.DECODER, "lm_head.weight"),
    "vision_encoder.patch_conv.weight": Place(Part.VISION, "patch_conv.weight"),
    "vision_encoder.ln_pre.weight": Place(Part.VISION, "ln_pre.weight"),
    "vision_language_adapter.w_in.weight": Place(Part.PROJECTOR, "linear_1.weight"),
    "vision_language_adapter.w_in.bias": Place(Part.PROJECTOR, "linear_1.bias"),
    "vision_language_adapter.w_out.weight": Place(Part.PROJECTOR, "linear_2.weight"),
    "vision_language_adapter.w_out.bias": Place(Part.PROJECTOR, "linear_2.bias"),
}
_ATTENTION = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}
_FEED_FORWARD = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_NATIVE_PROJECTIONS = _ATTENTION | _FEED_FORWARD
_NATIVE_LAYER = re.compile(
    r"(?P<vision>vision_encoder\.transformer\.)?layers\.(?P<index>\d+)\."
    r"(?:(?P<block>attention|feed_forward)\.(?P<projection>w[qkvo123])|(?P<norm>attention_norm|ffn_norm))\.weight"
)
_DECODER_BLOCKS = {"attention": "self_attn", "feed_forward": "mlp"}
_DECODER_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def _place_native(name: str) -> Place | None:
    match = _NATIVE_LAYER.fullmatch(name)
    if match is None:
        return _NATIVE_NAMES.get(name)
    block, projection, norm = match["block"], match["projection"], match["norm"]
    is_vision = match["vision"] is not None
    if norm is not None:
        inner = norm if is_vision else _DECODER_NORMS[norm]
    else:
        inner = f"{block if is_vision else _DECODER_BLOCKS[block]}.{_NATIVE_PROJECTIONS[projection]}"
    prefix = "transformer.layers" if is_vision else "model.layers"
    part = Part.VISION if is_vision else Part.DECODER
    return Place(part, f"{prefix}.{match['index']}.{inner}.weight", projection in ("wq", "wk"))


_NATIVE_BY_PLACE = {(where.part, where.name): name for name, where in _NATIVE_NAMES.items()}
_LOCAL_LAYER = re.compile(r"(?:model|transformer)\.layers\.(?P<index>\d+)\.(?P<inner>.+)\.weight")


def _stored_native(part: Part, name: str) -> str:
    match = _LOCAL_LAYER.fullmatch(name)
    if match is None:
        return _NATIVE_BY_PLACE[part, name]
    prefix = "vision_encoder.transformer." if part is Part.VISION else ""
    return f"{prefix}layers.{match['index']}.{_NATIVE_INNER[match['inner']]}.weight"


_NATIVE_INNER = (
    {
        f"{block}.{local}": f"attention.{own}"
        for block in ("self_attn", "attention")
        for own, local in _ATTENTION.items()
    }
    | {
        f"{block}.{local}": f"feed_forward.{own}"
        for block in ("mlp", "feed_forward")
        for own, local in _FEED_FORWARD.items()
    }
    | {local: own for own, local in _DECODER_NORMS.items()}
    | {own: own for own in _DECODER_NORMS}
)
