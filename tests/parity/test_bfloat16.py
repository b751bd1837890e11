"""In bfloat16 the pair stays near transformers in float32, and rounds where transformers rounds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.mistral.modeling_mistral import MistralRMSNorm, apply_rotary_pos_emb

from common.model.layers import RMSNorm
from common.model.rope import apply_rotary, inverse_frequencies, rotary_1d
from common.native.build import default_cache, find_or_build
from common.native.library import Library
from common.native.processor import cpu_levels
from tests.parity.plain_pair import PlainPair
from tests.parity.reference import Pictures, expected, pictures, random_ids
from tests.tiny_models import Shape, random_pixtral, save

SHAPES = [
    Shape(
        name="12b-like",
        hidden=256,
        heads=8,
        head_dim=32,
        layers=4,
        rope_theta=1e9,
        vision_heads=4,
        vision_head_dim=64,
        vision_layers=6,
    ),
    Shape(
        name="large-like",
        hidden=192,
        heads=12,
        kv_heads=1,
        layers=4,
        rope_theta=1e9,
        vision_head_dim=88,
        vision_layers=6,
        projector_bias=False,
    ),
]


def reference_features(model: PreTrainedModel, shown: Pictures) -> Tensor:
    with torch.no_grad():
        rows: Tensor = model.model.vision_tower(**shown.inputs).last_hidden_state[0]
    return rows


def error(rough: Tensor, exact: Tensor) -> float:
    """Relative to what is exact."""
    a, b = rough.double().flatten(), exact.double().flatten()
    return float((a - b).norm() / b.norm())


def assert_near(rough: Tensor, exact: Tensor) -> None:
    """The bounds that bfloat16's own rounding needs: a real tower's error is 2%."""
    assert functional.cosine_similarity(rough.double().flatten(), exact.double().flatten(), dim=0) > 0.999
    assert 0.001 < error(rough, exact) < 0.04


@pytest.mark.parametrize("level", cpu_levels())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_kernels_in_bfloat16_are_nearer_to_float32_than_transformers_is(
    shape: Shape, level: str, tmp_path: Path
) -> None:
    """As they round weights, inputs of products, keys and values, and features, and nothing else."""
    model, shown = random_pixtral(shape), pictures([(64, 64), (50, 31)])
    token_ids = [1, *shown.token_ids[0], *random_ids(20), *shown.token_ids[1], *random_ids(20)]
    save(model, tmp_path)
    features, logits = reference_features(model, shown), expected(model, token_ids, **shown.inputs)
    model.bfloat16()
    their_features, their_logits = reference_features(model, shown), expected(model, token_ids, **shown.inputs)
    library = Library(find_or_build(default_cache(), level), level=level, threads=1, rounds=True)
    ours = PlainPair(tmp_path, dtype=torch.bfloat16, library=library)
    rows = torch.cat(ours.features(shown.files))
    assert rows.dtype is torch.bfloat16
    assert 0.001 < error(rows, features) < 0.9 * error(their_features, features)
    found = ours.logits(token_ids, shown.files, chunk=37)
    assert 0.001 < error(found, logits) < 0.9 * error(their_logits, logits)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_bfloat16_features_and_logits_are_near_the_float32_reference(shape: Shape, tmp_path: Path) -> None:
    model, shown = random_pixtral(shape), pictures([(64, 64), (50, 31)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # As checkpoints are stored.
    token_ids = [1, *shown.token_ids[0], *random_ids(20), *shown.token_ids[1], *random_ids(20)]
    save(model, tmp_path)
    features, logits = reference_features(model, shown), expected(model, token_ids, **shown.inputs)
    rough, exact = PlainPair(tmp_path, dtype=torch.bfloat16), PlainPair(tmp_path)
    assert_near(torch.cat(rough.features(shown.files)), features)
    assert_near(rough.logits(token_ids, shown.files, chunk=100), logits)
    torch.testing.assert_close(torch.cat(exact.features(shown.files)), features, atol=1e-4, rtol=0)
    torch.testing.assert_close(exact.logits(token_ids, shown.files, chunk=100), logits, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_norms_round_where_the_reference_rounds(dtype: torch.dtype) -> None:
    theirs, ours = MistralRMSNorm(96, eps=1e-5).to(dtype), RMSNorm(96, 1e-5).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (theirs, ours):
            norm.weight.copy_(torch.linspace(0.5, 1.5, 96))
    x = (torch.randn(50, 96, generator=generator) * torch.logspace(-4, 3, 50)[:, None]).to(dtype)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rotation_rounds_where_the_reference_rounds(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(50, 3, 16, generator=generator).to(dtype)
    cos, sin = rotary_1d(torch.arange(50), inverse_frequencies(16, 1e6, torch.device("cpu")), dtype)
    heads_first = query.transpose(0, 1)[None]
    expected_query, _ = apply_rotary_pos_emb(heads_first, heads_first, cos[None], sin[None])
    assert torch.equal(apply_rotary(query, cos, sin), expected_query[0].transpose(0, 1))
