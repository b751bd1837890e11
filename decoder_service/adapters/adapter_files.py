"""Loads an adapter from a directory as PEFT writes it: adapter_config.json and adapter_model.safetensors.

Knows which tensors there may be: pairs of lora_A [rank, in_features] and lora_B [out_features, rank] of the decoder's
projections, under the names of either of transformers' layouts. Everything else is an error that names it: a part of
an adapter that is left out makes another model than the one that was trained.

Rows are not reordered. PEFT trains beside transformers' modules, whose query and key rows are in half-split rotary
order, and so are the rows of ours, whatever the format of the checkpoint that they were loaded from.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common.checkpoint.files import CheckpointError, CheckpointFormat
from common.checkpoint.layout import Part, place
from common.checkpoint.safetensors_file import StoredTensor, read_header, shown
from common.checkpoint.shapes import tensor_shapes
from common.model.config import MistralConfig
from decoder_service.adapters.adapter import MODULES, Adapter, LowRank, digest_of
from decoder_service.adapters.adapter_config import AdapterConfig, read_adapter_config

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"

_PREFIX = "base_model.model."
_HALF = re.compile(
    rf"model\.layers\.(?P<layer>0|[1-9][0-9]{{0,8}})\.(?P<module>{'|'.join(map(re.escape, MODULES))})"
    r"\.(?P<half>lora_A|lora_B)\.weight"
)


class _Target(NamedTuple):
    """One half of a change, by its name."""

    layer: int
    module: str
    half: str
    """lora_A or lora_B."""
    full_name: str
    """The module's name in the model that the adapter was trained with."""


_Pair = dict[str, tuple[StoredTensor, _Target]]
"""The halves of a change."""


def load_adapter(
    name: str,
    directory: Path,
    *,
    config: MistralConfig,
    has_vision: bool,
    dtype: torch.dtype,
    device: torch.device,
    max_rank: int,
) -> Adapter:
    """Read an adapter of a decoder of this shape, and give it the type and place of the decoder's weights.

    `has_vision` says whether the model takes pictures, as names differ. Raises CheckpointError, one line that
    names adapter, file and key or tensor, for whatever we would not compute as PEFT does, and for ranks over
    `max_rank`.
    """
    try:
        config_file, weights_file = _find(directory)
        adapter_config = read_adapter_config(config_file)
        shapes = {shape.name: shape.shape for shape in tensor_shapes(config) if shape.part is Part.DECODER}
        pairs = _pairs(weights_file, config, has_vision=has_vision)
        for pair in pairs.values():
            _check(pair, shapes, adapter_config, max_rank=max_rank)
        changes = {where: _read(pair, adapter_config, dtype) for where, pair in pairs.items()}
    except CheckpointError as error:
        raise CheckpointError(f"adapter {shown(name)}: {error}") from error
    return Adapter(
        name=name,
        rank=max(change.down.shape[0] for change in changes.values()),
        digest=digest_of(changes),
        changes={
            where: LowRank(down=change.down.to(device), up=change.up.to(device)) for where, change in changes.items()
        },
    )


def _find(directory: Path) -> tuple[Path, Path]:
    config_file, weights_file = directory / CONFIG_NAME, directory / WEIGHTS_NAME
    if not config_file.is_file():
        raise CheckpointError(f"{CONFIG_NAME}: missing; expected it and {WEIGHTS_NAME} in {directory}")
    if not weights_file.is_file():
        there = f", and {PICKLE_NAME} is a pickle, which can run code" if (directory / PICKLE_NAME).exists() else ""
        raise CheckpointError(f"{WEIGHTS_NAME}: missing{there}; expected safetensors in {directory}")
    return config_file, weights_file


def _pairs(file: Path, config: MistralConfig, *, has_vision: bool) -> Mapping[tuple[int, str], _Pair]:
    """The halves of every change, by layer and module."""
    pairs: dict[tuple[int, str], _Pair] = {}
    for stored in read_header(file):
        target = _target(stored, config, has_vision=has_vision)
        pair = pairs.setdefault((target.layer, target.module), {})
        if target.half in pair:
            raise _error(stored, f"is the same as {shown(pair[target.half][0].name)}; expected one of them")
        pair[target.half] = stored, target
    if not pairs:
        raise CheckpointError(f"{file.name}: holds no tensors; expected pairs of lora_A and lora_B")
    return pairs


def _target(stored: StoredTensor, config: MistralConfig, *, has_vision: bool) -> _Target:
    """Where a tensor belongs. Raises CheckpointError for one that belongs to no projection of the decoder."""
    name = stored.name.removeprefix(_PREFIX)
    where = place(name, layout=CheckpointFormat.HF, has_vision=has_vision)
    if where is not None and where.part is not Part.DECODER:
        raise _error(stored, f"is of {where.part.value}; adapters of the vision part are not supported")
    match = None if where is None or name == stored.name else _HALF.fullmatch(where.name)
    if match is None:
        other = place(name, layout=CheckpointFormat.HF, has_vision=not has_vision)
        if other is not None and _HALF.fullmatch(other.name):
            other_kind, kind = ("without", "with") if has_vision else ("with", "without")
            raise _error(stored, f"is named as in a model {other_kind} pictures; expected one for a model {kind} them")
        expected = f"{_PREFIX}...lora_A.weight and lora_B.weight of the decoder's {', '.join(MODULES)}"
        raise _error(stored, f"is not supported; expected {expected}")
    if int(match["layer"]) >= config.num_hidden_layers:
        raise _error(stored, f"is beyond the model's layers; expected layers 0 to {config.num_hidden_layers - 1}")
    return _Target(int(match["layer"]), match["module"], match["half"], name.removesuffix(f".{match['half']}.weight"))


def _check(pair: _Pair, shapes: Mapping[str, tuple[int, ...]], adapter_config: AdapterConfig, *, max_rank: int) -> None:
    """Raise unless both halves are there, and have the shapes that the model and the config give them."""
    for half, other in (("lora_A", "lora_B"), ("lora_B", "lora_A")):
        if half not in pair:
            raise _error(pair[other][0], f"is there without its {half}; expected both")
    (down, target), (up, _) = pair["lora_A"], pair["lora_B"]
    rank = adapter_config.rank_of(target.full_name)
    out_features, in_features = shapes[f"model.layers.{target.layer}.{target.module}.weight"]
    for stored, shape in ((down, (rank, in_features)), (up, (out_features, rank))):
        if stored.shape != shape:
            raise _error(stored, f"has shape {shown(list(stored.shape))}, expected {shown(list(shape))}")
    if rank > max_rank:
        raise _error(down, f"has rank {rank}, expected at most {max_rank}, see --max-lora-rank")


def _read(pair: _Pair, adapter_config: AdapterConfig, dtype: torch.dtype) -> LowRank:
    """The change in main memory, its scale applied before it is rounded."""
    (down, target), (up, _) = pair["lora_A"], pair["lora_B"]
    scaled = up.read().float() * adapter_config.scale_of(target.full_name)
    return LowRank(down=_rounded(down, down.read(), dtype), up=_rounded(up, scaled, dtype))


def _rounded(stored: StoredTensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    values = values.to(dtype)
    if not bool(values.isfinite().all()):
        # Also a scale or a type with too little range makes one of a finite value.
        raise _error(stored, f"holds a value that is not finite as {str(dtype).removeprefix('torch.')}")
    return values


def _error(stored: StoredTensor, message: str) -> CheckpointError:
    return CheckpointError(f"{stored.file.name}: tensor {shown(stored.name)} {message}")
