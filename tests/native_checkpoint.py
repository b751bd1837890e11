"""Writes a random model as Mistral writes its own: params.json and consolidated.safetensors.

Written from the description of that format and from transformers' published conversion, so that it can judge
the code that reads it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

RENAMES = (
    (r"^(model\.)?language_model\.", ""),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^model\.", ""),
    (r"^vision_tower\.", "vision_encoder."),
    (r"^multi_modal_projector\.linear_1\.", "vision_language_adapter.w_in."),
    (r"^multi_modal_projector\.linear_2\.", "vision_language_adapter.w_out."),
    (r"^embed_tokens\.", "tok_embeddings."),
    (r"^lm_head\.", "output."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.mlp\.", ".feed_forward."),
    (r"\.(q|k|v|o)_proj\.", r".w\1."),
    (r"\.gate_proj\.", ".w1."),
    (r"\.down_proj\.", ".w2."),
    (r"\.up_proj\.", ".w3."),
)


def write_native(model: PreTrainedModel, directory: Path, *, permuted: bool = True) -> Path:
    """Write the model; without `permuted`, its query and key rows wrongly keep Hugging Face's order."""
    config: dict[str, Any] = model.config.to_dict()
    text = config.get("text_config", config)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and text["tie_word_embeddings"]:
            continue
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if permuted and name.endswith((".wq.weight", ".wk.weight")):
            vision = name.startswith("vision_encoder.")
            tensor = in_pairs(tensor, (config["vision_config"] if vision else text)["head_dim"])
        tensors[name] = tensor.contiguous().clone()
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "consolidated.safetensors")
    params = text_params(text)
    if "vision_config" in config:
        params["vision_encoder"] = vision_params(config["vision_config"], config)
    (directory / "params.json").write_text(json.dumps(params))
    return directory


def in_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Rows [num_heads * head_dim, in] with each head's row 2j from its row j, and 2j + 1 from j + head_dim / 2."""
    order = torch.empty(head_dim, dtype=torch.long)
    order[0::2] = torch.arange(head_dim // 2)
    order[1::2] = torch.arange(head_dim // 2) + head_dim // 2
    return weight.view(-1, head_dim, weight.shape[1])[:, order].reshape(weight.shape)


def text_params(text: Mapping[str, Any]) -> dict[str, Any]:
    params = {
        "dim": text["hidden_size"],
        "n_layers": text["num_hidden_layers"],
        "head_dim": text["head_dim"],
        "hidden_dim": text["intermediate_size"],
        "n_heads": text["num_attention_heads"],
        "n_kv_heads": text["num_key_value_heads"],
        "norm_eps": text["rms_norm_eps"],
        "vocab_size": text["vocab_size"],
        "rope_theta": text["rope_parameters"]["rope_theta"],
    }
    if text["sliding_window"] is not None:
        params["sliding_window"] = text["sliding_window"]
    if text["tie_word_embeddings"]:
        params["tied_embeddings"] = True
    return params


def vision_params(vision: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": vision["hidden_size"],
        "num_channels": vision["num_channels"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "rope_theta": vision["rope_parameters"]["rope_theta"],
        "intermediate_size": vision["intermediate_size"],
        "num_hidden_layers": vision["num_hidden_layers"],
        "num_attention_heads": vision["num_attention_heads"],
        "adapter_bias": whole["multimodal_projector_bias"],
        "image_token_id": whole["image_token_index"],
    }
