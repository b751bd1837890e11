"""Joining weights leaves nothing of their parts, neither in use nor kept by the allocator."""

import weakref
from dataclasses import replace

import pytest
import torch

from decoder_service.model.cuda.layer_weights import join_layers
from decoder_service.model.mistral import MistralForCausalLM
from tests.small_configs import SMALL_TEXT


def decoder(*, num_layers: int) -> MistralForCausalLM:
    return MistralForCausalLM(replace(SMALL_TEXT, num_hidden_layers=num_layers))


def test_the_parts_of_a_layer_are_handed_back_before_the_next_layer_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(num_layers=3)
    parts = [
        [weakref.ref(module.weight) for module in (layer.self_attn.q_proj, layer.mlp.gate_proj, layer.mlp.up_proj)]
        for layer in model.decoder_layers
    ]
    left: list[list[int]] = []
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: left.append([sum(part() is not None for part in each) for each in parts])
    )
    join_layers(model)
    assert left == [[0, 3, 3], [0, 0, 3], [0, 0, 0]]


def test_joined_weights_are_the_parts_one_below_the_other() -> None:
    model = decoder(num_layers=1)
    (layer,) = model.decoder_layers
    attention = layer.self_attn
    expected = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).detach()
    (joined,) = join_layers(model)
    x = torch.eye(16)
    torch.testing.assert_close(joined.qkv(x).T, expected, rtol=0, atol=0)
