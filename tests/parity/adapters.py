"""Random adapters, and what they come to when they are merged into the weights of transformers' model."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from decoder_service.adapters.adapter import MODULES, Adapter, LowRank
from decoder_service.model.compute import Compute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel
from tests.parity.harness import MakeCompute
from tests.tiny_models import Model


def random_adapter(model: nn.Module, *, seed: int, modules: Sequence[str] = MODULES, rank: int = 3) -> Adapter:
    """One that changes every layer but the first, each module by a rank of its own."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    num_layers = len([*text_of(model).get_submodule("layers").children()])
    for layer in range(1, num_layers):
        for index, name in enumerate(modules):
            rows, columns = weight_of(model, layer, name).shape
            shape = rank + index
            changes[layer, name] = LowRank(
                down=torch.randn(shape, columns, generator=generator) / columns**0.5,
                up=torch.randn(rows, shape, generator=generator) * 0.3,
            )
    digest = hashlib.sha256(str(seed).encode()).digest()
    return Adapter(name=f"adapter-{seed}", rank=rank + len(modules) - 1, digest=digest, changes=changes)


def merged(model: Model, adapter: Adapter) -> Model:
    """A copy of the model with an adapter in its weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for (layer, name), change in adapter.changes.items():
            weight_of(model, layer, name).add_(change.up @ change.down)
    return model


def with_adapters(make_compute: MakeCompute, adapters: Sequence[Adapter]) -> MakeCompute:
    """A compute for a model that has these adapters."""

    def make(model: DecoderModel, kv_cache: KVCache) -> Compute:
        return make_compute(replace(model, adapters=tuple(adapters)), kv_cache)

    return make


def text_of(model: nn.Module) -> nn.Module:
    """The module that has the decoder's layers."""
    inner = model.get_submodule("model") if hasattr(model, "model") else model
    return inner.get_submodule("language_model") if hasattr(inner, "language_model") else inner


def weight_of(model: nn.Module, layer: int, name: str) -> torch.Tensor:
    """A layer's weight by its module's name."""
    weight = text_of(model).get_submodule(f"layers.{layer}.{name}").weight
    assert isinstance(weight, torch.Tensor)
    return weight
