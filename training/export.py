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

from common.checkpoint.config import CLIP_MEAN, CLIP_STD
from common.checkpoint.hf_config import hf_documents
from common.image.preprocessing import Preprocessing, PreprocessingMode
from common.model.config import PixtralConfig
from training.batches import BOS, EOS, PAD
from training.model import TrainablePixtral, demo_config


def write_checkpoint(model: TrainablePixtral, config: PixtralConfig, tekken: bytes, folder: Path) -> None:
    """Write every file of the checkpoint but the read-me."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in disk_tensors(model)}
    _replace(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    _replace(folder / "tekken.json", tekken)
    for name, document in documents(config).items():
        _replace(folder / name, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def disk_tensors(model: TrainablePixtral) -> Iterator[tuple[str, Tensor]]:
    """Names on disk and tensors, without the helping heads."""
    for name, tensor in model.state_dict().items():
        if not name.startswith("helping_heads."):
            yield name, tensor


def documents(config: PixtralConfig) -> dict[str, dict[str, Any]]:
    """The JSON files of the checkpoint, by name."""
    preprocessing = Preprocessing(
        mode=PreprocessingMode.HF,
        patch_size=config.vision.patch_size,
        image_size=config.vision.image_size,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    files = hf_documents(config, preprocessing, torch_dtype="float32") | {"generation_config.json": dict(special)}
    files["config.json"]["text_config"] |= special
    files["config.json"]["transformers_version"] = "4.45.0"
    return files


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
