"""Kernels that may round: what is rounded, how, and that a row does not depend on its company."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.model.attention import packed_attention
from common.native.build import default_cache, find_or_build
from common.native.library import Library
from common.native.processor import cpu_levels
from common.native.weights import PackedWeights
from tests.common.native.attention import LENGTHS, native_attention, random_rows


@pytest.fixture(scope="module", params=cpu_levels())
def library(request: pytest.FixtureRequest) -> Library:
    """For every kind of processor that this machine can stand in for."""
    level = request.param
    return Library(find_or_build(default_cache(), level), level=level, threads=2, rounds=True)


def taken(library: Library, x: Tensor) -> Tensor:
    """Inputs as they are multiplied: where there are no tiles nothing is gained by rounding them."""
    return x.bfloat16().float() if library.has_tiles else x


@pytest.mark.parametrize(("columns", "depth"), [(100, 48), (1, 1), (33, 1100), (130, 512), (700, 512)])
def test_products_are_those_of_the_nearest_bfloat16s_and_the_same_bits_for_any_number_of_rows(
    library: Library, columns: int, depth: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(depth, columns, bias=False)
    layer.weight = nn.Parameter(torch.randn(columns, depth, generator=generator))
    x = torch.randn(400, depth, generator=generator)
    expected = taken(library, x).double() @ layer.weight.bfloat16().double().T
    packed = PackedWeights(library, [layer])
    assert packed.bits == 16
    together = packed(x)
    torch.testing.assert_close(together.double(), expected, atol=1e-5 * depth**0.5, rtol=1e-5)
    for rows in (1, 2, 5, 13, 15, 16, 17, 32, 33, 47, 48, 64, 65, 127, 128, 129, 170, 399):
        assert torch.equal(packed(x[1 : 1 + rows]), together[1 : 1 + rows])


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_numbers_become_the_nearest_ones_and_of_two_that_are_as_near_the_even_one(library: Library, rows: int) -> None:
    unit = 2.0**-7
    values = [1 + unit / 2, 1 + 1.5 * unit, -1 - unit / 2, 1 + 0.51 * unit, 1 + 0.49 * unit, 3.0e38, 2.0**-126, 1 / 3]
    x = torch.tensor(values).repeat(rows, 1)
    layer = nn.Linear(len(values), len(values), bias=False)
    layer.weight = nn.Parameter(torch.eye(len(values)))
    assert torch.equal(PackedWeights(library, [layer])(x), taken(library, x))
    weights = nn.Linear(len(values), 1, bias=False)
    weights.weight = nn.Parameter(torch.tensor([values]))
    assert torch.equal(PackedWeights(library, [weights])(torch.eye(len(values)))[:, 0], x[0].bfloat16().float())


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3.4e38])
def test_what_is_not_finite_or_becomes_so_stays_in_its_row(library: Library, value: float, rows: int) -> None:
    layer = nn.Linear(64, 40, bias=False)
    layer.weight = nn.Parameter(torch.full((40, 64), 2.0))
    packed = PackedWeights(library, [layer])
    x = torch.ones(rows, 64)
    # Of NaNs also the one whose mantissa would vanish by rounding.
    x[0, 5] = value if value == value else torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32)
    found = packed(x)
    assert found[0].isnan().all() if value != value else found[0].isinf().all()
    assert (found[1:] == 128).all()


def test_weights_in_bytes_stay_so(library: Library) -> None:
    layer = nn.Linear(64, 40, bias=False)
    assert PackedWeights(library, [layer], in_bytes=True).bits == 8


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 2, 20), (6, 2, 32), (3, 3, 64), (8, 1, 128), (5, 1, 40)]
)
def test_attention_is_that_of_torch_but_for_rounding(
    library: Library, heads: int, kv_heads: int, head_dim: int, *, causal: bool
) -> None:
    query, key, value = random_rows(heads, kv_heads, head_dim)
    options: Any = {"lengths": LENGTHS, "causal": causal, "scale": head_dim**-0.5}
    found = native_attention(library, query, key, value, **options)
    expected = packed_attention(query, key, value, **options)
    error = (found - expected).norm() / expected.norm()
    assert 1e-3 < error < 6e-3 if library.has_tiles else error < 1e-6
    value[3, 0, 0] = torch.nan
    touched = native_attention(library, query, key, value, **options)
    assert touched[7].isnan().any()
    assert torch.equal(touched[8:], found[8:])
