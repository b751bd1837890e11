"""Writes a checkpoint of ours as llama.cpp's file: `python -m benchmarks.peers.gguf_file SOURCE FILE DTYPE`.

Knows the names and the order of rotary pairs that llama.cpp expects. Runs in llama.cpp's environment, with its own
writer (gguf); the file has no vocabulary, as prompts come as token ids. Of a file in bfloat16 vectors are float32, as
llama.cpp's own converter has them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Matrix = NDArray[np.float32]
_FILE_TYPES = {"float32": gguf.LlamaFileType.ALL_F32, "bfloat16": gguf.LlamaFileType.MOSTLY_BF16}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(source: Path, target: Path, dtype: str) -> None:
    """Write the file in float32 or bfloat16; it has its name only when it is whole."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    aside = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(aside, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in load_file(source / "model.safetensors").items():
        _add(writer, *_converted(name, tensor, config["head_dim"]), dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    aside.replace(target)


def _add(writer: gguf.GGUFWriter, name: str, tensor: Matrix, dtype: str) -> None:
    if dtype == "float32" or tensor.ndim == 1:
        writer.add_tensor(name, tensor)
    else:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)


def _converted(name: str, tensor: Matrix, head_dim: int) -> tuple[str, Matrix]:
    if name in _OUTER:
        return _OUTER[name], tensor
    _, _, layer, *inner, last = name.split(".")
    kind = ".".join(inner)
    if kind in ("self_attn.q_proj", "self_attn.k_proj"):
        tensor = _pairs_beside_each_other(tensor, head_dim)
    return f"blk.{layer}.{_INNER[kind]}.{last}", tensor


def _pairs_beside_each_other(weight: Matrix, head_dim: int) -> Matrix:
    """Rotary pairs (i, i + head_dim / 2) of Hugging Face's order become (2 i, 2 i + 1)."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
