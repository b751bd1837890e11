"""Who attends in tiles, where they may round; and libraries for several processors in one process."""

import subprocess
import sys
from array import array
from collections.abc import Callable
from ctypes import byref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.native.build import default_cache, find_or_build
from common.native.library import CBatch, CEncoderLayer, CEncoderShape, CLayer, CShape, CWeights, Library
from common.native.processor import cpu_levels
from common.native.weights import PackedWeights
from tests.common.native.attention import native_attention

ROOT = Path(__file__).parents[3]
ROWS, SIZE, HEADS, HEAD_DIM, INNER = 40, 64, 4, 16, 32


@pytest.fixture(scope="module", params=cpu_levels())
def library(request: pytest.FixtureRequest) -> Library:
    """For every kind of processor that this machine can stand in for."""
    level = request.param
    return Library(find_or_build(default_cache(), level), level=level, threads=1, rounds=True)


class Layer:
    """One layer whose queries, keys and values are the same whether inputs are rounded or not: they are 1 or -1."""

    def __init__(self, library: Library) -> None:
        torch.manual_seed(0)
        self.ones = torch.ones(SIZE)
        self.packed = [
            PackedWeights(library, [nn.Linear(depth, columns, bias=False)])
            for columns, depth in ((3 * SIZE, SIZE), (SIZE, SIZE), (2 * INNER, SIZE), (SIZE, INNER), (50, SIZE))
        ]
        self.inputs = torch.randint(0, 2, (ROWS, SIZE)).float() * 2 - 1

    def weights(self, *, attends_rounded: bool) -> list[CWeights]:
        """Query, key and value in one, output, gate and up, down, head."""
        qkv = self.packed[0].c
        first = CWeights(qkv.data, qkv.scales, qkv.columns, qkv.depth, qkv.bits, attends_rounded)
        return [first, *(each.c for each in self.packed[1:])]


def encoded(library: Library, layer: Layer, *, attends_rounded: bool) -> Tensor:
    qkv, output, gate_up, down, _ = layer.weights(attends_rounded=attends_rounded)
    ones = layer.ones.data_ptr()
    shape = CEncoderShape(SIZE, 1, HEADS, HEAD_DIM, INNER, 0.0, HEAD_DIM**-0.5)
    encoder = library.c.diptych_encoder_new(
        library.pool, byref(shape), byref(CEncoderLayer(ones, qkv, output, ones, gate_up, down))
    )
    cosines, sines = torch.ones(ROWS, HEAD_DIM // 2), torch.zeros(ROWS, HEAD_DIM // 2)
    lengths, x = array("q", [ROWS]), layer.inputs.clone()
    library.c.diptych_encoder_run(
        encoder, 1, lengths.buffer_info()[0], cosines.data_ptr(), sines.data_ptr(), x.data_ptr()
    )
    return x


def decoded(library: Library, layer: Layer, *, attends_rounded: bool) -> Tensor:
    qkv, output, gate_up, down, head = layer.weights(attends_rounded=attends_rounded)
    ones, frequencies = layer.ones.data_ptr(), torch.zeros(HEAD_DIM // 2)
    keys, values = torch.zeros(2, ROWS, HEADS, HEAD_DIM)
    shape = CShape(SIZE, 1, HEADS, HEADS, HEAD_DIM, INNER, 50, ROWS, 0, 32, 0.0, HEAD_DIM**-0.5)
    c_layer = CLayer(ones, qkv, output, ones, gate_up, down, keys.data_ptr(), values.data_ptr())
    decoder = library.c.diptych_decoder_new(
        library.pool, byref(shape), frequencies.data_ptr(), byref(c_layer), ones, byref(head), None, 0
    )
    rows, table, lengths = torch.arange(ROWS), torch.zeros(1, dtype=torch.long), torch.tensor([ROWS])
    pointers = (rows.data_ptr(), rows.data_ptr(), table.data_ptr(), lengths.data_ptr(), lengths.data_ptr())
    x = layer.inputs.clone()
    library.c.diptych_decoder_hidden(decoder, byref(CBatch(ROWS, 1, 1, *pointers)), ROWS, rows.data_ptr(), x.data_ptr())
    return x


@pytest.mark.parametrize("compute", [encoded, decoded])
def test_encoder_and_decoder_attend_in_tiles_where_they_may_round_and_there_are_any(
    library: Library, compute: Callable[..., Tensor]
) -> None:
    layer = Layer(library)
    rounded, exact = compute(library, layer, attends_rounded=True), compute(library, layer, attends_rounded=False)
    assert torch.equal(rounded, exact) != library.has_tiles
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)


def test_what_is_no_number_does_not_reach_whoever_comes_next(library: Library) -> None:
    """A sequence of fewer tokens than the one before, whose values lie behind its own in what is read at once."""
    lengths = [7, 3] * 6
    query, key, value = torch.randn(3, sum(lengths), 2, 32, generator=torch.Generator().manual_seed(1))
    for start in range(0, len(value), 10):
        value[start + 5] = torch.nan
    found = native_attention(library, query, key, value, lengths=lengths, causal=False, scale=1.0)
    of_three = torch.tensor([index % 10 >= 7 for index in range(len(value))])
    assert found[of_three].isfinite().all()
    assert not found[~of_three].isfinite().any()


def test_weights_of_values_are_rounded_to_the_nearest_so_that_they_add_up_to_one(library: Library) -> None:
    query, key = torch.randn(2, 300, 2, 32, generator=torch.Generator().manual_seed(2))
    found = native_attention(library, query, key, torch.ones(300, 2, 32), lengths=[300], causal=False, scale=0.3)
    assert abs(float(found.double().mean()) - 1) < 2e-4


def test_libraries_for_several_processors_do_not_meet_in_one_process() -> None:
    """In a fresh one, and those for the oldest first: what a thread keeps for one is of no use to another."""
    script = """
from common.native.build import default_cache, find_or_build
from common.native.library import Library
from common.native.processor import cpu_levels
from tests.common.native.test_tile_attention import Layer, decoded
for level in reversed(cpu_levels()):
    library = Library(find_or_build(default_cache(), level), level=level, threads=1, rounds=True)
    layer = Layer(library)
    for _ in range(3):
        print(bool(decoded(library, layer, attends_rounded=True).isfinite().all()))
"""
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'build/gen')!r}]\n"
    done = subprocess.run([sys.executable, "-c", path + script], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * (3 * len(cpu_levels()))
