"""Plots of how a step's host cost grows, as one PNG file.

Knows matplotlib, which is an extra: `pip install diptych[bench]`.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.components.host import STEP_BY_CONTEXT, STEP_BY_RUNNING, STEP_BY_WAITING
from benchmarks.components.timing import Measurement

_AXES = {
    STEP_BY_RUNNING: "running requests",
    STEP_BY_CONTEXT: "tokens of context of each of 32 requests",
    STEP_BY_WAITING: "waiting requests beside 32 running",
}


def plot_growth(measurements: Sequence[Measurement], folder: Path) -> Path:
    """Draw the three growths beside each other; returns the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "growth.png"
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, (component, label) in zip(axes, _AXES.items(), strict=True):
        points = [each for each in measurements if each.component == component and each.parameter is not None]
        values = [each.value.median for each in points]
        below = [each.value.median - each.value.lowest for each in points]
        above = [each.value.highest - each.value.median for each in points]
        axis.errorbar([each.parameter or 0 for each in points], values, yerr=[below, above], marker="o", capsize=3)
        axis.set(xlabel=label, ylabel="us in a step without a model", ylim=(0, max(values, default=1) * 1.3))
        if component != STEP_BY_RUNNING:
            axis.set_xscale("log")
        axis.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
