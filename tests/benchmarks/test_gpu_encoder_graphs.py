"""The comparison of recorded passes of the encoder is right about them, also where they are wrong."""

import torch

from benchmarks.gpu.encoder_graphs import encoder_graph_rows
from benchmarks.gpu.models import randomise
from common.model.graph_recorder import GraphRecorder, Run
from tests.benchmarks.on_cpu import clock
from tests.replayer import Replayer
from tests.vision_service.model.small_encoder import CONFIG, blind_attention, masked_attention
from vision_service.model.encoder import PixtralVisionModel


def encoder() -> PixtralVisionModel:
    model = PixtralVisionModel(CONFIG)
    randomise(model)
    return model


class Unable(GraphRecorder):
    """Records nothing."""

    def record(self, work: Run) -> Run:
        raise RuntimeError


def test_every_pack_is_compared_and_timed_both_ways() -> None:
    rows = list(encoder_graph_rows(encoder(), Replayer(), masked_attention, clock))
    assert [row["right"] for row in rows] == [True] * len(rows)
    assert all(float(str(row["error of a row"])) < 1e-3 for row in rows)
    assert {"ms", "ms without graphs", "pictures/s", "recorded patches"} <= rows[0].keys()
    assert [row["recorded patches"] for row in rows][:3] == [256, 256, 1024]


def test_pictures_that_see_each_other_are_found_out() -> None:
    rows = list(encoder_graph_rows(encoder(), Replayer(), blind_attention, clock))
    assert not all(row["right"] for row in rows)


def test_what_cannot_be_recorded_is_not_right() -> None:
    rows = list(encoder_graph_rows(encoder(), Unable(), masked_attention, clock))
    assert [row["right"] for row in rows] == [False] * len(rows)
    assert torch.is_grad_enabled()
