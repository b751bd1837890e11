"""Recorded passes give what unrecorded ones give, whatever was in their tensors before."""

import logging

import pytest
import torch
from torch import Tensor

from common.model.graph_recorder import GraphRecorder, Run
from tests.replayer import Replayer
from tests.vision_service.model.small_encoder import (
    CPU,
    blind_attention,
    encode,
    images,
    make_runner,
    masked_attention,
)
from tests.vision_service.model.small_encoder import model as model
from vision_service.model import encoder_graphs
from vision_service.model.encoder import PixtralVisionModel
from vision_service.model.encoder_graphs import EncoderGraphs, most_pictures, pack_sizes
from vision_service.model.runner import EncoderRunner
from vision_service.model.segment_attention import choose_segment_attention

PACKS = [[(2, 2)], [(8, 8), (3, 5)], [(1, 1)] * 4, [(16, 16)], [(4, 4), (2, 9), (4, 4)], [(5, 5)]]
"""Packs of patch grids, in an order in which a small pack finds what a large one left."""


def largest_difference(one: EncoderRunner, other: EncoderRunner) -> float:
    return max(
        float((a - b).abs().max())
        for seed, grids in enumerate(PACKS)
        for a, b in zip(encode(one, images(grids, seed=seed)), encode(other, images(grids, seed=seed)), strict=True)
    )


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_graphs, "_SIZES", (4, 20, 80))


@pytest.mark.usefixtures("small_sizes")
def test_filled_up_and_replayed_packs_give_what_unrecorded_ones_give(model: PixtralVisionModel) -> None:
    plain, recorded, replayer = make_runner(model), make_runner(model, masked_attention), Replayer()
    assert recorded.record(replayer, max_batch_patches=1000) == (4, 20, 80)
    assert largest_difference(plain, recorded) < 1e-5
    # All but the pack of 256 patches were replayed.
    assert replayer.num_runs == len(PACKS) - 1
    # The negative control: an attention that does not keep them apart is found.
    blind = make_runner(model, blind_attention)
    blind.record(Replayer(), max_batch_patches=1000)
    assert largest_difference(plain, blind) > 1e-2


def test_packs_of_several_sizes_give_the_same_by_one_attention(model: PixtralVisionModel) -> None:
    assert largest_difference(make_runner(model), make_runner(model, masked_attention)) < 1e-5
    assert largest_difference(make_runner(model), make_runner(model, blind_attention)) > 1e-2


def make_graphs(model: PixtralVisionModel, recorder: GraphRecorder, *sizes: int) -> EncoderGraphs:
    with torch.inference_mode():
        return EncoderGraphs(model, masked_attention, recorder, sizes=sizes, device=CPU, dtype=torch.float32)


def test_a_pack_is_filled_up_to_the_next_size_or_runs_unrecorded(model: PixtralVisionModel) -> None:
    graphs = make_graphs(model, Replayer(), 8, 16, 64)
    assert [graphs.size_for([n]) for n in (1, 8, 9, 16, 17, 64, 65)] == [8, 8, 16, 16, 64, 64, None]
    assert graphs.size_for([3, 3, 3]) == 16
    assert (graphs.size_for([1] * 32), graphs.size_for([1] * 33)) == (64, None)


def test_the_larger_a_recorded_pack_the_fewer_pictures_it_has_room_for(model: PixtralVisionModel) -> None:
    assert [most_pictures(size) for size in (256, 512, 1024, 2048, 4096, 8192)] == [32, 32, 16, 8, 4, 4]
    lengths: list[int] = []

    def attention(query: Tensor, key: Tensor, value: Tensor, *, starts: Tensor, longest: int, scale: float) -> Tensor:
        lengths.append(len(starts))
        return masked_attention(query, key, value, starts=starts, longest=longest, scale=scale)

    with torch.inference_mode():
        sizes = (8, 1024)
        graphs = EncoderGraphs(model, attention, Replayer(), sizes=sizes, device=CPU, dtype=torch.float32)
    assert set(lengths) == {32 + 2, 16 + 2}
    assert (graphs.size_for([60] * 16), graphs.size_for([60] * 17)) == (1024, None)


def test_sizes_rise_and_are_no_larger_than_a_batch() -> None:
    assert pack_sizes(100) == (100,)
    assert pack_sizes(1024) == (256, 512, 1024)
    for most in (256, 1000, 4096, 8192):
        sizes = pack_sizes(most)
        assert list(sizes) == sorted(set(sizes))
        assert sizes[-1] <= most


class FullRecorder:
    """Fails at the pass with this number, as where there is no memory."""

    def __init__(self, *, fails_at: int) -> None:
        self.passes_left = fails_at

    def record(self, work: Run) -> Run:
        if self.passes_left == 0:
            raise torch.OutOfMemoryError("no memory for a graph")
        self.passes_left -= 1
        return work


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(("fails_at", "left"), [(0, ()), (1, (80,)), (2, (20, 80))])
def test_what_cannot_be_recorded_runs_unrecorded(
    model: PixtralVisionModel, caplog: pytest.LogCaptureFixture, fails_at: int, left: tuple[int, ...]
) -> None:
    runner = make_runner(model, masked_attention)
    with caplog.at_level(logging.WARNING):
        assert runner.record(FullRecorder(fails_at=fails_at), max_batch_patches=1000) == left
    assert [record.message for record in caplog.records] == ["passes run unrecorded"]
    assert largest_difference(make_runner(model), runner) < 1e-5


@pytest.mark.usefixtures("small_sizes")
def test_recorded_passes_can_be_forgotten(model: PixtralVisionModel) -> None:
    runner, replayer = make_runner(model, masked_attention), Replayer()
    runner.record(replayer, max_batch_patches=1000)
    assert runner.forget_recorded()
    assert not runner.forget_recorded()
    assert largest_difference(make_runner(model), runner) < 1e-5
    assert replayer.num_runs == 0


def test_nothing_is_recorded_where_it_is_of_no_use(model: PixtralVisionModel) -> None:
    assert choose_segment_attention(CPU, torch.bfloat16) is None
    assert choose_segment_attention(torch.device("cuda"), torch.float32) is None
    replayer = Replayer()
    assert make_runner(model).record(replayer, max_batch_patches=256) == ()
    assert make_runner(model, masked_attention, deterministic=True).record(replayer, max_batch_patches=256) == ()
    assert replayer.num_runs == 0
