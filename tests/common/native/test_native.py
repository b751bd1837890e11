"""The kernels: how they come to be, and that each computes what torch does."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.model.attention import packed_attention
from common.native import build, processor
from common.native.build import best_library, default_cache, find_or_build, library_path
from common.native.library import Library
from common.native.processor import NativeUnavailableError, cpu_levels
from common.native.weights import PackedWeights
from tests.common.native.attention import LENGTHS, native_attention, random_rows

LEVELS = ["x86-64-v3", "x86-64-v4", "x86-64-v4-amx"]


@pytest.fixture(scope="module", params=LEVELS)
def library(request: pytest.FixtureRequest) -> Library:
    """For every kind of processor that this machine can stand in for."""
    levels = cpu_levels()
    level = request.param if request.param in levels else levels[0]
    return Library(find_or_build(default_cache(), level), level=level, threads=2)


def test_products_are_those_of_torch_and_the_same_bits_for_any_number_of_rows(library: Library) -> None:
    generator = torch.Generator().manual_seed(1)
    for columns, depth in ((100, 48), (1, 1), (33, 1100), (512, 160), (700, 512)):
        layer = nn.Linear(depth, columns, bias=False)
        x = torch.randn(400, depth, generator=generator)
        expected = layer(x).detach()
        packed = PackedWeights(library, [layer])
        together = packed(x)
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
        for rows in (1, 2, 5, 13, 14, 15, 33, 170, 399):
            assert torch.equal(packed(x[7 : 7 + rows]), together[7 : 7 + rows])


@pytest.mark.parametrize("dtypes", [("float32",) * 3, ("bfloat16",) * 3, ("bfloat16", "float32", "bfloat16")], ids=str)
def test_layers_that_share_their_input_stand_below_one_another_and_give_their_weights_up(
    library: Library, dtypes: tuple[str, ...]
) -> None:
    layers = [
        nn.Linear(20, columns, bias=False, dtype=getattr(torch, dtype))
        for columns, dtype in zip((40, 7, 33), dtypes, strict=True)
    ]
    weights = torch.cat([layer.weight.detach().float() for layer in layers])
    packed = PackedWeights(library, layers)
    torch.testing.assert_close(packed(torch.eye(20)), weights.T)
    assert not any(hasattr(layer, "weight") for layer in layers)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "depth"), [(100, 48), (1, 1), (33, 1100), (130, 512)])
def test_weights_that_are_bfloat16_take_half_the_memory_and_give_what_whole_ones_give(
    library: Library, columns: int, depth: int, stored: torch.dtype
) -> None:
    """The same bits without tiles, which add the same numbers up in another order."""
    generator = torch.Generator().manual_seed(3)
    half, whole = nn.Linear(depth, columns, bias=False), nn.Linear(depth, columns + 1, bias=False)
    weights = (torch.randn(columns, depth, generator=generator) * 30).bfloat16().float()
    half.weight = nn.Parameter(weights.to(stored))
    # The last column's is no bfloat16, so that all of them stay as they are.
    whole.weight = nn.Parameter(torch.cat([weights, torch.full((1, depth), 1 / 3)]))
    packed, others = PackedWeights(library, [half]), PackedWeights(library, [whole])
    assert (packed.bits, others.bits) == (16, 32)
    x = torch.randn(400, depth, generator=generator)
    together, expected = packed(x), others(x)[:, :columns]
    if library.has_tiles:
        exact = x.double() @ weights.T.double()
        assert (together - exact).square().mean() <= 1.1 * (expected - exact).square().mean()
    else:
        assert torch.equal(together, expected)
    for rows in (1, 2, 5, 13, 14, 15, 16, 17, 33, 170, 399):
        assert torch.equal(packed(x[1 : 1 + rows]), together[1 : 1 + rows])


@pytest.mark.parametrize("rows", [1, 40])
def test_every_bit_of_a_float_counts_where_it_is_multiplied_by_a_bfloat16(library: Library, rows: int) -> None:
    layer = nn.Linear(70, 70, bias=False)
    layer.weight = nn.Parameter(-4 * torch.eye(70))
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 70, generator=generator) * torch.exp2(torch.randint(-80, 80, (rows, 70), generator=generator))
    x[0, :3] = torch.tensor([1 + 2**-23, 2 - 2**-23, -0.75 - 2**-24])
    packed = PackedWeights(library, [layer])
    assert packed.bits == 16
    assert torch.equal(packed(x), -4 * x)


@pytest.mark.parametrize("value", [-2.0, 2.0**-120, 2.0**127, 1 + 2**-7, 2.0**-133, torch.inf])
def test_every_kind_of_bfloat16_is_the_same_number_in_half_the_memory(library: Library, value: float) -> None:
    """But in tiles, where what is too small is zero, and infinity times a zero is no number."""
    layer = nn.Linear(1, 40, bias=False)
    layer.weight = nn.Parameter(torch.full((40, 1), value))
    packed = PackedWeights(library, [layer])
    assert packed.bits == 16
    found = packed(torch.ones(1, 1))
    if library.has_tiles and value == torch.inf:
        assert found.isnan().all()
    else:
        assert found.unique().tolist() == [0.0 if library.has_tiles and abs(value) < 2.0**-126 else value]


def test_few_rows_are_the_bits_of_many_where_sums_are_tiny(library: Library) -> None:
    layer = nn.Linear(1100, 40, bias=False, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(torch.zeros(40, 1100, dtype=torch.bfloat16))
    layer.weight.data[:, 0], layer.weight.data[:, 600] = 1, -1
    packed = PackedWeights(library, [layer])
    x = torch.zeros(3, 1100)
    x[:, 0], x[:, 600] = 2.0**-125, 1.5 * 2.0**-126
    assert torch.equal(packed(x)[:1], packed(x[:1]))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so_and_in_its_row(library: Library, value: float) -> None:
    layer = nn.Linear(64, 40, bias=False, dtype=torch.bfloat16)
    packed = PackedWeights(library, [layer])
    x = torch.randn(20, 64)
    expected = packed(x)
    x[3, 5] = value
    found = packed(x)
    assert not found[3].isfinite().any()
    assert torch.equal(found[[*range(3), *range(4, 20)]], expected[[*range(3), *range(4, 20)]])


@pytest.mark.parametrize("place", [0, 39 * 20, 40 * 20 - 1])
def test_one_weight_that_is_no_bfloat16_keeps_all_of_them_whole(library: Library, place: int) -> None:
    layer = nn.Linear(20, 40, bias=False)
    weights = torch.ones(40 * 20)
    weights[place] = 1 + 2**-8
    layer.weight = nn.Parameter(weights.view(40, 20).clone())
    packed = PackedWeights(library, [layer])
    assert packed.bits == 32
    assert torch.equal(packed(torch.eye(20)).T, weights.view(40, 20))


def test_weights_of_8_bits_are_off_by_half_a_step_at_most(library: Library) -> None:
    layer = nn.Linear(300, 70, bias=False)
    weights = layer.weight.detach()
    found = PackedWeights(library, [layer], in_bytes=True)(torch.eye(300)).T
    steps = weights.abs().amax(dim=1, keepdim=True) / 127
    assert ((found - weights).abs() <= 0.501 * steps).all()
    assert not torch.equal(found, weights)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 20), (6, 2, 32), (3, 3, 64), (8, 1, 128)])
def test_packed_attention_is_that_of_torch(
    library: Library, heads: int, kv_heads: int, head_dim: int, *, causal: bool
) -> None:
    query, key, value = random_rows(heads, kv_heads, head_dim)
    options: Any = {"lengths": LENGTHS, "causal": causal, "scale": head_dim**-0.5}
    found = native_attention(library, query, key, value, **options)
    expected = packed_attention(query, key, value, **options)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    # What is not a number must not get lost, and must stay in its own sequence.
    value[3, 0, 0] = torch.nan
    touched = native_attention(library, query, key, value, **options)
    assert touched[7].isnan().any()
    assert torch.equal(touched[8:], found[8:])


def test_greedy_choice_is_the_first_of_the_largest_and_says_what_is_wrong(library: Library) -> None:
    logits = torch.randn(9, 133, generator=torch.Generator().manual_seed(3))
    logits[1, 40] = logits[1, 90] = 9.0
    logits[2, 132] = torch.nan
    logits[3, 5] = torch.inf
    logits[4, 7], logits[4, 131] = 8.0, 8.0 + 5e-5
    best, finite, near = library.greedy(logits, margin=1e-4)
    assert finite == [True, True, False, False, True, True, True, True, True]
    assert [best[row] for row in (0, 1, 4, 5)] == [int(logits[0].argmax()), 40, 131, int(logits[5].argmax())]
    assert near == [False, True, False, False, True, False, False, False, False]


def test_the_processor_decides_which_libraries_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    v3 = "fpu avx2 fma bmi1 bmi2 f16c movbe"
    v4 = f"{v3} avx512f avx512bw avx512cd avx512dq avx512vl"
    cpuinfo.write_text(f"processor: 0\nflags\t\t: {v4}\n")
    assert cpu_levels(cpuinfo) == ["x86-64-v4", "x86-64-v3"]
    cpuinfo.write_text(f"flags\t\t: {v3} avx512f\n")
    assert cpu_levels(cpuinfo) == ["x86-64-v3"]
    cpuinfo.write_text("flags\t\t: fpu sse2\n")
    with pytest.raises(NativeUnavailableError, match="x86-64-v3"):
        cpu_levels(cpuinfo)
    cpuinfo.write_text(f"flags\t\t: {v4} amx_bf16 amx_tile\n")
    for may, best in ((True, "x86-64-v4-amx"), (False, "x86-64-v4")):
        monkeypatch.setattr(processor, "_may_use_tiles", lambda may=may: may)
        assert cpu_levels(cpuinfo)[0] == best


def test_a_kind_of_processor_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailableError, match="pentium is none of x86-64-v4-amx, "):
        find_or_build(tmp_path, "pentium")


def test_what_the_compiler_cannot_do_for_the_best_kind_is_done_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "c++"
    fake.write_text('#!/bin/sh\nfor last; do :; done\ncase $* in *-mamx*) exit 1;; esac\necho built > "$last"\n')
    fake.chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(build, "cpu_levels", lambda: LEVELS[::-1])
    assert best_library(tmp_path / "cache") == (library_path(tmp_path / "cache", "x86-64-v4"), "x86-64-v4")
    monkeypatch.setattr(build, "cpu_levels", lambda: LEVELS[-1:])
    with pytest.raises(NativeUnavailableError, match="failed"):
        best_library(tmp_path / "cache")


def test_without_a_compiler_only_what_is_built_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeUnavailableError, match="there is no compiler"):
        find_or_build(tmp_path, "x86-64-v3")
    there = library_path(tmp_path, "x86-64-v3")
    there.touch()
    assert find_or_build(tmp_path, "x86-64-v3") == there


def test_the_compiler_that_is_named_is_taken_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c++", "mine"):
        (tmp_path / name).write_text(f'#!/bin/sh\nfor last; do :; done\necho {name} > "$last"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for number, (given, name) in enumerate((("", "c++"), ("mine", "mine"), (str(tmp_path / "mine"), "mine"))):
        monkeypatch.setenv("CXX", given)
        assert find_or_build(tmp_path / f"cache{number}", "x86-64-v3").read_text() == f"{name}\n"
    for given, words in (("false", "false failed"), ("/no/such", "there is no compiler")):
        monkeypatch.setenv("CXX", given)
        with pytest.raises(NativeUnavailableError, match=words):
            find_or_build(tmp_path / "none", "x86-64-v3")


def test_a_compiler_that_fails_or_a_folder_that_is_none_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "native.cpp").write_text("this is not C++")
    monkeypatch.setattr(build, "_SOURCES", sources)
    with pytest.raises(NativeUnavailableError, match=r"failed: .*error") as caught:
        find_or_build(tmp_path / "cache", "x86-64-v3")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.so"))
    (tmp_path / "file").touch()
    with pytest.raises(NativeUnavailableError, match="cannot be written"):
        find_or_build(tmp_path / "file" / "cache", "x86-64-v3")


def test_a_library_that_is_none_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "wrong.so").write_bytes(b"not a library")
    with pytest.raises(NativeUnavailableError, match="does not load"):
        Library(tmp_path / "wrong.so", level="x86-64-v3", threads=1)


def test_the_command_builds_ahead_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that only touches its output, as the real one takes seconds."""
    fake = tmp_path / "c++"
    fake.write_text('#!/bin/sh\nfor last; do :; done\necho built > "$last"\n')
    fake.chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DIPTYCH_NATIVE_CACHE", str(tmp_path / "cache"))
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
    done = run([sys.executable, "-m", "common.native", *LEVELS], capture_output=True, text=True, check=True)
    paths = [Path(line) for line in done.stdout.split()]
    assert [path.read_text() for path in paths] == ["built\n"] * 3
    assert paths == [library_path(tmp_path / "cache", level) for level in LEVELS]
