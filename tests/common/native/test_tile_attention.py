"""Who attends in tiles, where they may round; and libraries for several processors in one process."""

import shutil
import subprocess
from array import array
from collections.abc import Callable
from ctypes import byref
from pathlib import Path
from struct import unpack_from

import pytest
import torch
from torch import Tensor, nn

from common.native.build import default_cache, find_or_build
from common.native.library import CBatch, CEncoderLayer, CEncoderShape, CLayer, CShape, CWeights, Library
from common.native.processor import cpu_levels
from common.native.weights import PackedWeights
from tests.common.native.attention import native_attention

_DYNSYM, _GNU_UNIQUE, _SYMBOL_SIZE = 11, 10, 24
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
        library.pool, byref(shape), frequencies.data_ptr(), byref(c_layer), ones, byref(head), None, 0, None
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


@pytest.mark.parametrize("level", cpu_levels())
def test_a_library_shares_nothing_with_those_for_other_processors_in_one_process(level: str) -> None:
    """What is static inside of a template or a class is by default, and they differ in its size."""
    assert _unique_symbols(find_or_build(default_cache(), level).read_bytes()) == []


def test_what_would_be_shared_is_found(tmp_path: Path) -> None:
    """The negative control: GCC makes such a symbol of this, and no other compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no GCC")
    source, built = tmp_path / "shared.cpp", tmp_path / "shared.so"
    source.write_text(
        "template <typename T> struct A { static int& f() { static thread_local int kept; return kept; } };\n"
        'extern "C" int* g() { return &A<int>::f(); }\n'
    )
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(built)], check=True)  # noqa: S603
    assert len(_unique_symbols(built.read_bytes())) == 1


def _unique_symbols(elf: bytes) -> list[int]:
    """Numbers of the dynamic symbols that a process has but once, whatever libraries bring them (STB_GNU_UNIQUE)."""
    (offset,) = unpack_from("<Q", elf, 0x28)
    entry_size, count = unpack_from("<HH", elf, 0x3A)
    sections = [unpack_from("<IIQQQQ", elf, offset + number * entry_size) for number in range(count)]
    ((start, size),) = [(section[4], section[5]) for section in sections if section[1] == _DYNSYM]
    return [at for at in range(start, start + size, _SYMBOL_SIZE) if elf[at + 4] >> 4 == _GNU_UNIQUE]
