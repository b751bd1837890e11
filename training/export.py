"""Writes a trained model as a checkpoint folder: `python -m training.export --run runs/demo --out models/demo`.

Knows the files and the tensor names of Hugging Face's Pixtral on disk (the layout of its first release).
Does not know training. Every file is written aside and renamed, so that no reader sees half of one.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from common.model.config import PixtralConfig
from training.batches import BOS, EOS, PAD
from training.model import IMAGE_MEAN, IMAGE_STD, TrainablePixtral, demo_config


def write_checkpoint(model: TrainablePixtral, config: PixtralConfig, tekken: bytes, folder: Path) -> None:
    """Write every file of the checkpoint but the read-me."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in disk_tensors(model)}
    _replace(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    _replace(folder / "tekken.json", tekken)
    for name, document in _documents(config).items():
        _replace(folder / name, (json.dumps(document, indent=2) + "\n").encode())


def disk_tensors(model: TrainablePixtral) -> Iterator[tuple[str, Tensor]]:
    """Names on disk and tensors, without the helping heads."""
    for name, tensor in model.state_dict().items():
        if not name.startswith("helping_heads."):
            yield name, tensor


def _documents(config: PixtralConfig) -> dict[str, dict[str, Any]]:
    return {
        "config.json": _config(config),
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD},
        "preprocessor_config.json": _preprocessor(config),
        "processor_config.json": {
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
            "image_token": "[IMG]",
            "patch_size": config.vision.patch_size,
            "processor_class": "PixtralProcessor",
        },
    }


def _config(config: PixtralConfig) -> dict[str, Any]:
    text, vision = config.text, config.vision
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": 1,
        "image_token_index": config.image_token_index,
        "model_type": "llava",
        "multimodal_projector_bias": config.multimodal_projector_bias,
        "projector_hidden_act": "gelu",
        "text_config": {
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "head_dim": text.head_dim,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.feed_forward_length,
            "max_position_embeddings": text.max_position_embeddings,
            "model_type": "mistral",
            "num_attention_heads": text.num_attention_heads,
            "num_hidden_layers": text.num_hidden_layers,
            "num_key_value_heads": text.num_key_value_heads,
            "pad_token_id": PAD,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "sliding_window": text.sliding_window,
            "tie_word_embeddings": text.tie_word_embeddings,
            "vocab_size": text.vocab_size,
        },
        "tie_word_embeddings": text.tie_word_embeddings,
        "torch_dtype": "float32",
        "transformers_version": "4.45.0",
        "vision_config": {
            "head_dim": vision.vision_head_dim,
            "hidden_act": "silu",
            "hidden_size": vision.vision_hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.vision_intermediate_size,
            "model_type": "pixtral",
            "num_attention_heads": vision.vision_num_attention_heads,
            "num_channels": vision.num_channels,
            "num_hidden_layers": vision.vision_num_hidden_layers,
            "patch_size": vision.patch_size,
            "rope_theta": vision.vision_rope_theta,
            "tie_word_embeddings": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def _preprocessor(config: PixtralConfig) -> dict[str, Any]:
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_processor_type": "PixtralImageProcessor",
        "image_std": list(IMAGE_STD),
        "patch_size": {"height": config.vision.patch_size, "width": config.vision.patch_size},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": config.vision.image_size},
    }


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(content)
    aside.replace(path)


def trained(run: Path) -> TrainablePixtral:
    """The model of a run's last checkpoint."""
    model = TrainablePixtral(demo_config())
    model.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=True)["weights"])
    return model.eval()


def main() -> None:
    """Export by the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint to write")
    args = parser.parse_args()
    write_checkpoint(trained(args.run), demo_config(), (args.run / "tekken.json").read_bytes(), args.out)


if __name__ == "__main__":
    main()
