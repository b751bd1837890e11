"""Of two ways to compute a pass the faster one is taken, and none that computes something else or nothing."""

import math

import pytest
import torch

from common.model.graph_recorder import Recorded
from decoder_service.model.cuda.pass_choice import Challenge, faster

X = torch.zeros(1, 4)
"""What passes read."""


def doubling(error: float = 0.0) -> Recorded:
    """A pass that doubles what is in X, and clears it."""
    out = torch.zeros(1, 4)

    def run() -> None:
        out.copy_(X * (2 + error))
        X.zero_()

    return Recorded(run, out)


def fill() -> None:
    X.copy_(torch.arange(1, 5))


def challenge(other: Recorded, *, seconds: float) -> Challenge:
    """The usual way takes a second."""
    return Challenge(
        record=lambda: other,
        fill=fill,
        clock=lambda run: seconds if run is other.run else 1.0,
        limit=0.1,
    )


@pytest.mark.parametrize(("seconds", "is_taken"), [(0.5, True), (1.5, False)])
def test_the_faster_one_is_taken(seconds: float, is_taken: bool) -> None:
    usual, other = doubling(), doubling(0.01)
    chosen, found = faster(usual, challenge(other, seconds=seconds))
    assert chosen is (other if is_taken else usual)
    assert found == {"ms": seconds * 1e3, "usual_ms": 1e3, "distance": pytest.approx(0.005, rel=1e-4)}


@pytest.mark.parametrize("error", [0.5, math.nan, math.inf])
def test_one_that_computes_something_else_is_not_taken_however_fast(error: float) -> None:
    usual = doubling()
    assert faster(usual, challenge(doubling(error), seconds=0.1))[0] is usual


def test_one_that_cannot_be_recorded_leaves_the_usual_one() -> None:
    def fail() -> Recorded:
        raise torch.OutOfMemoryError("full")

    usual = doubling()
    tried = Challenge(record=fail, fill=lambda: None, clock=lambda _: 1.0, limit=0.1)
    assert faster(usual, tried) == (usual, {})
