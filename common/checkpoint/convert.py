"""Turns a checkpoint of one format into the other, without changing a bit of any weight.

Knows what the two formats call things, and that rows of q and k are in another order. Does not know models'
arithmetic. Streams: never more than one tensor is in memory.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from common.checkpoint.checkpoint import Checkpoint, Entry, head_dim, open_checkpoint
from common.checkpoint.config import CLIP_MEAN, CLIP_STD, read_preprocessing
from common.checkpoint.files import CheckpointError, CheckpointFormat
from common.checkpoint.hf_config import hf_documents
from common.checkpoint.layout import Part, Place, place, stored_name
from common.checkpoint.native_config import native_documents
from common.checkpoint.rotary_order import half_split, paired
from common.checkpoint.safetensors_writer import Planned, write_safetensors
from common.image.preprocessing import Preprocessing
from common.model.config import PixtralConfig

_COPIED = ("tekken*.json", "tokenizer*", "*.model.v*", "special_tokens_map.json", "generation_config.json")
_COPIED_TOO = ("chat_template*", "LICENSE*", "NOTICE*", "README*")


def convert_checkpoint(source: Path, destination: Path, to: CheckpointFormat) -> None:
    """Write the checkpoint in `source` to the new directory `destination`.

    Tokenizers, generation settings and texts are copied. Raises CheckpointError where the source cannot be read,
    is of that format already, or says what the other format cannot; FileExistsError where there is something at
    the destination.
    """
    checkpoint = open_checkpoint(source)
    if checkpoint.layout is to:
        raise CheckpointError(f"{source}: is in the format {to.value} already")
    documents = _documents(checkpoint, to)
    if destination.exists() and any(destination.iterdir()):
        raise FileExistsError(f"{destination}: is not empty")
    destination.mkdir(parents=True, exist_ok=True)
    write_safetensors(
        destination / to.weights_name,
        [_planned(checkpoint, entry, to) for part in Part for entry in checkpoint.entries(part)],
    )
    for pattern in (*_COPIED, *_COPIED_TOO):
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, destination / path.name)
    # The config last: without it a directory is no checkpoint, so half of one is never taken for a whole.
    for name, document in reversed(documents.items()):
        (destination / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _planned(checkpoint: Checkpoint, entry: Entry, to: CheckpointFormat) -> Planned:
    has_vision = isinstance(checkpoint.config, PixtralConfig)
    name = stored_name(entry.place.part, entry.place.name, layout=to, has_vision=has_vision)
    native = place(
        stored_name(entry.place.part, entry.place.name, layout=CheckpointFormat.NATIVE, has_vision=has_vision),
        layout=CheckpointFormat.NATIVE,
        has_vision=has_vision,
    )
    return Planned(
        name=name,
        dtype=entry.stored.dtype,
        shape=entry.stored.shape,
        make=partial(_reordered, entry, native, to, head_dim(checkpoint.config, entry.place.part)),
    )


def _reordered(entry: Entry, native: Place | None, to: CheckpointFormat, width: int) -> Tensor:
    tensor = entry.stored.read()
    if native is None or not native.permuted_heads:
        return tensor
    return half_split(tensor, width) if to is CheckpointFormat.HF else paired(tensor, width)


def _documents(checkpoint: Checkpoint, to: CheckpointFormat) -> dict[str, dict[str, Any]]:
    """The files to write beside the weights, the config first."""
    config, preprocessing = checkpoint.config, None
    if isinstance(config, PixtralConfig):
        preprocessing = read_preprocessing(checkpoint.directory, config.vision)
    if to is CheckpointFormat.HF:
        dtypes = [str(entry.stored.dtype).removeprefix("torch.") for entry in checkpoint.entries(Part.DECODER)]
        documents = hf_documents(config, preprocessing, torch_dtype=max(set(dtypes), key=dtypes.count))
    else:
        _check_pixels(preprocessing)
        documents = native_documents(config, preprocessing)
    if checkpoint.end_token_ids and not (checkpoint.directory / "generation_config.json").is_file():
        documents["generation_config.json"] = {"eos_token_id": sorted(checkpoint.end_token_ids)}
    return documents


def _check_pixels(preprocessing: Preprocessing | None) -> None:
    """Raise where pictures are normalised by other numbers than those that Mistral's format means."""
    if preprocessing is not None and (preprocessing.mean, preprocessing.std) != (CLIP_MEAN, CLIP_STD):
        raise CheckpointError("preprocessor_config.json: params.json cannot state this image_mean and image_std")
