"""A checkpoint of Pixtral-12B's exact shape with random weights in bfloat16, in shards as the published one.

Knows shapes, files and threads. Does not know services. The numbers are drawn where that is fast, on a GPU if there is
one, and `python -m benchmarks.one_gpu.checkpoint` is a process of its own, so that nothing of it stays on the device.
"""

import argparse
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.checkpoints import MODELS, PREPROCESSING, SEED, TOKENIZER
from benchmarks.pixtral_12b import DECODER_12B, ENCODER_400M
from common.checkpoint.files import CheckpointFormat
from common.checkpoint.hf_config import hf_documents
from common.checkpoint.layout import stored_name
from common.checkpoint.safetensors_writer import Planned, write_safetensors
from common.checkpoint.shapes import tensor_shapes
from common.model.config import MistralConfig, PixtralConfig

SHARD_BYTES = 5_000_000_000
"""Most bytes of a shard, as published checkpoints have it: six shards for the whole model."""
_SPARE_BYTES = 1 << 30
_PIXTRAL_12B = PixtralConfig(text=DECODER_12B, vision=ENCODER_400M, image_token_index=10)


def shape(name: str) -> PixtralConfig:
    """`12b`, `small` with four of its forty layers, or `quick`, which is tiny. Raises ValueError."""
    if name == "12b":
        return _PIXTRAL_12B
    if name == "small":
        return replace(_PIXTRAL_12B, text=replace(DECODER_12B, num_hidden_layers=4))
    config = MODELS["smoke-pixtral"]
    if name != "quick" or isinstance(config, MistralConfig):
        raise ValueError(f"{name} is none of 12b, small, quick")
    return config


def planned_tensors(config: PixtralConfig, device: torch.device) -> list[Planned]:
    """Every tensor of the model in bfloat16, in the order in which files have them."""
    return [
        Planned(
            name=stored_name(part, name, layout=CheckpointFormat.HF, has_vision=True),
            dtype=torch.bfloat16,
            shape=size,
            make=partial(_random, f"{part.value}.{name}", size, device),
        )
        for part, name, size in tensor_shapes(config)
    ]


def shards(planned: Sequence[Planned], most_bytes: int = SHARD_BYTES) -> Iterator[list[Planned]]:
    """Cut the tensors into shards of up to so many bytes; a larger tensor is one by itself."""
    shard: list[Planned] = []
    for tensor in planned:
        if shard and sum(each.num_bytes for each in shard) + tensor.num_bytes > most_bytes:
            yield shard
            shard = []
        shard.append(tensor)
    if shard:
        yield shard


def write_checkpoint(
    directory: Path, config: PixtralConfig, *, device: torch.device, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write all files; the directory has its name only when it is whole. Raises ValueError where there is no room."""
    planned = planned_tensors(config, device)
    total = sum(tensor.num_bytes for tensor in planned)
    directory.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(directory.parent).free) < total + _SPARE_BYTES:
        raise ValueError(f"{directory.parent} has {free / 1e9:.1f} GB free, the checkpoint takes {total / 1e9:.1f}")
    aside = directory.with_name(f"{directory.name}.{os.getpid()}")
    aside.mkdir()
    cut = list(shards(planned, shard_bytes))
    names = [f"model-{number:05d}-of-{len(cut):05d}.safetensors" for number in range(1, len(cut) + 1)]
    with ThreadPoolExecutor() as pool:
        # All results are asked for, so that what goes wrong in a thread is raised here.
        list(pool.map(write_safetensors, [aside / name for name in names], cut))
    weight_map = {tensor.name: name for name, shard in zip(names, cut, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (aside / CheckpointFormat.HF.index_name).write_text(json.dumps(index))
    for file, document in hf_documents(config, PREPROCESSING, torch_dtype="bfloat16").items():
        (aside / file).write_text(json.dumps(document))
    shutil.copy(TOKENIZER, aside)
    aside.replace(directory)


def _random(name: str, size: Sequence[int], device: torch.device) -> Tensor:
    """Values on the host that keep activations near 1 and depend on the tensor's name and the device's kind alone."""
    if len(size) == 1:
        return torch.full(tuple(size), float(name.endswith("weight")), dtype=torch.bfloat16)
    generator = torch.Generator(device=device).manual_seed(SEED ^ zlib.crc32(name.encode()))
    values = torch.empty(tuple(size), dtype=torch.bfloat16, device=device)
    return values.normal_(0.0, math.prod(size[1:]) ** -0.5, generator=generator).cpu()


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_gpu.checkpoint", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", default="12b", help="12b, small or quick")
    parser.add_argument("--device", default="cuda", help="where the numbers are drawn")
    options = parser.parse_args()
    try:
        write_checkpoint(options.directory, shape(options.shape), device=torch.device(options.device))
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
