"""transformers' modules around our own parameters, which so are there once.

Knows that both name their weights alike and rotate halves of a head. Needs transformers 5.
"""

from typing import Any

import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, PixtralVisionConfig
from transformers.models.pixtral.modeling_pixtral import PixtralVisionModel

from decoder_service.model.weights import DecoderModel
from vision_service.model.encoder import PixtralVisionModel as OurEncoder


def transformers_decoder(model: DecoderModel, *, attention: str) -> Any:  # noqa: ANN401 - its methods are not typed
    """A `MistralForCausalLM` of theirs; `attention` is their name of what computes it."""
    ours = model.config
    shape: dict[str, Any] = {
        "hidden_size": ours.hidden_size,
        "num_attention_heads": ours.num_attention_heads,
        "num_key_value_heads": ours.num_key_value_heads,
        "head_dim": ours.head_dim,
        "num_hidden_layers": ours.num_hidden_layers,
        "intermediate_size": ours.feed_forward_length,
        "vocab_size": ours.vocab_size,
        "rms_norm_eps": ours.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": ours.rope_theta},
        "max_position_embeddings": ours.max_position_embeddings,
        "sliding_window": ours.sliding_window,
        "tie_word_embeddings": ours.tie_word_embeddings,
        "attn_implementation": attention,
    }
    # Nothing ends a request but its length.
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = MistralConfig(**shape, **ends)
    with torch.device("meta"):
        theirs: Any = MistralForCausalLM(config)
    _share(model.decoder, theirs)
    theirs.model.rotary_emb = _anew(theirs.model.rotary_emb, config, model.device)
    return theirs.eval()


def transformers_encoder(model: OurEncoder, *, attention: str) -> Any:  # noqa: ANN401
    """A `PixtralVisionModel` of theirs."""
    ours = model.config
    shape: dict[str, Any] = {
        "hidden_size": ours.vision_hidden_size,
        "num_attention_heads": ours.vision_num_attention_heads,
        "head_dim": ours.vision_head_dim,
        "num_hidden_layers": ours.vision_num_hidden_layers,
        "intermediate_size": ours.vision_intermediate_size,
        "patch_size": ours.patch_size,
        "image_size": ours.image_size,
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": ours.vision_rope_theta, "rope_type": "axial"},
        "attn_implementation": attention,
    }
    config = PixtralVisionConfig(**shape)
    with torch.device("meta"):
        theirs: Any = PixtralVisionModel(config)
    _share(model, theirs)
    device = model.patch_conv.weight.device
    theirs.patch_positional_embedding = _anew(theirs.patch_positional_embedding, config, device)
    return theirs.eval()


def _share(ours: nn.Module, theirs: nn.Module) -> None:
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    theirs.requires_grad_(False)


def _anew(rotary: nn.Module, config: Any, device: torch.device) -> nn.Module:  # noqa: ANN401 - one of their configs
    """Its frequencies are no weights, and were made where there are no numbers."""
    return type(rotary)(config).to(device)
