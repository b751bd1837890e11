"""transformers' encoder around our weights gives our features, and is found out where it does not."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from benchmarks.gpu import encoding
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.encoding import encode
from benchmarks.gpu.models import random_encoder
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.peers import transformers_encoder, transformers_weights
from benchmarks.gpu.peers.decoding_rows import CHECKED as DECODER
from benchmarks.gpu.peers.peer import Setting
from benchmarks.gpu.peers.transformers_encoder import CHECKED, Encoder, encoder_rows
from benchmarks.gpu.pictures import patches_of, random_pixels
from benchmarks.gpu.report import Row
from tests.benchmarks.on_cpu import CPU, clock

GRIDS = [(3, 2), (2, 5), (4, 4)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_encoder, "PACKS", {"three": GRIDS})


def rows() -> list[Row]:
    setting = Setting(
        device=CPU, cases=frozenset({"G6"}), decoder=DECODER, ours=OwnFigures({}, {"three": 12.0}), seconds=100.0
    )
    return list(encoder_rows(setting, clock=clock, timed=CHECKED))


def test_both_ways_are_checked_and_held_against_our_pictures_a_second() -> None:
    check, packed, single = rows()
    assert check["right"] is True
    assert (packed["case"], single["case"]) == ("three, packed", "three, one by one")
    for row in (packed, single):
        assert row["ours / its"] == pytest.approx(12.0 / float(str(row["pictures/s"])))


def test_pictures_that_see_each_other_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their one call then gives what no call for each picture gives."""
    from transformers.models.pixtral import modeling_pixtral

    def blind(_: object, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.new_zeros(1, 1, tensor.shape[1], tensor.shape[1])

    monkeypatch.setattr(modeling_pixtral, "generate_block_attention_mask", blind)
    with pytest.raises(ValueError, match="other features; it is not timed"):
        rows()


def test_it_takes_our_parameters_and_no_memory_for_them() -> None:
    model = random_encoder(CPU, CHECKED, torch.bfloat16)
    theirs = transformers_weights.transformers_encoder(model, attention="sdpa")
    assert {each.data_ptr() for each in theirs.parameters()} == {each.data_ptr() for each in model.parameters()}
    assert all(not buffer.is_meta for buffer in theirs.buffers())


def test_features_in_bfloat16_are_near_ours() -> None:
    model = random_encoder(CPU, CHECKED, torch.bfloat16)
    pixels = random_pixels(GRIDS, CHECKED.patch_size, CPU, torch.bfloat16)
    with torch.inference_mode():
        want = encode(model, patches_of(pixels, CHECKED.patch_size), GRIDS).float()
    assert (Encoder(model).packed(pixels).float() - want).abs().max() < 0.15 * want.std()


def test_ours_is_timed_on_the_pictures_that_the_peer_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU multiplies zeros faster."""
    seen: list[torch.Tensor] = []

    def time_it(work: Callable[[], object]) -> float:
        work()
        return 2.0

    monkeypatch.setattr(encoding, "PACKS", {"three": GRIDS})
    monkeypatch.setattr(encoding, "random_encoder", lambda _: None)
    monkeypatch.setattr(encoding, "_fused", lambda _: None)
    monkeypatch.setattr(encoding, "row_error", lambda found, wanted: 0.0)
    monkeypatch.setattr(encoding, "encode", lambda model, patches, grids: seen.append(patches))
    monkeypatch.setattr(encoding, "seconds", time_it)
    (row,) = encoding.encode_rows(CPU, Ceilings(copy_bytes=1.0, read_bytes=1.0, flops=1e12))
    assert row["pictures/s"] == len(GRIDS) / 2.0
    torch.testing.assert_close(seen[0], patches_of(random_pixels(GRIDS, 16, CPU, torch.bfloat16), 16))
    assert seen[0].float().std() > 0.9


def test_patches_are_what_a_convolution_sees() -> None:
    pixels = random_pixels(GRIDS, 16, CPU, torch.float32)
    weight = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    want = torch.cat([functional.conv2d(each[None], weight, stride=16)[0].flatten(1).T for each in pixels])
    torch.testing.assert_close(patches_of(pixels, 16) @ weight.flatten(1).T, want, atol=1e-3, rtol=1e-4)
