"""Plots of a load, as PNG files: latencies as distributions, and what was under way over time.

Knows matplotlib, which is an extra: `pip install diptych[bench]`. Does not know how the load was made.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.load.figures import end_to_end, inter_token_latencies, time_per_output_token, time_to_first_token
from benchmarks.load.records import RequestRecord


def plot_load(records: Sequence[RequestRecord], folder: Path) -> list[Path]:
    """Write the plots and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    good = [record for record in records if record.succeeded]
    return [_latencies(good, folder / "latencies.png"), _timeline(good, folder / "timeline.png")]


def _latencies(records: Sequence[RequestRecord], path: Path) -> Path:
    tpots = [time_per_output_token(record) for record in records]
    samples = {
        "TTFT": [time_to_first_token(record) for record in records],
        "TPOT": [tpot for tpot in tpots if tpot is not None],
        "ITL": [gap for record in records for gap in inter_token_latencies(record)],
        "E2EL": [end_to_end(record) for record in records],
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for axis, (name, seconds) in zip(axes.flat, samples.items(), strict=True):
        values = sorted(second * 1000 for second in seconds)
        axis.plot(values, [(place + 1) / len(values) for place in range(len(values))])
        axis.set(title=name, xlabel="ms", ylabel="part at or below", ylim=(0, 1.02))
        axis.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _timeline(records: Sequence[RequestRecord], path: Path) -> Path:
    start = min(record.sent_at for record in records)
    figure, (under_way, tokens) = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    changes = sorted([(record.sent_at, 1) for record in records] + [(record.chunk_times[-1], -1) for record in records])
    heights, height = [], 0
    for _, change in changes:
        height += change
        heights.append(height)
    under_way.step([at - start for at, _ in changes], heights, where="post")
    under_way.set(ylabel="requests under way")
    tokens.hist([at - start for record in records for at in record.chunk_times], bins=60)
    tokens.set(xlabel="seconds", ylabel="chunks")
    for axis in (under_way, tokens):
        axis.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
