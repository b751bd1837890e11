"""`python -m benchmarks components`: what every part costs by itself.

Knows the command line and where results go. Does not know how parts are measured.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.components.decoder import measure_decode, measure_prefill
from benchmarks.components.host import measure_blocks, measure_steps
from benchmarks.components.pictures import measure_decoding, measure_encoder
from benchmarks.components.products import measure_products
from benchmarks.components.texts import measure_texts
from benchmarks.components.timing import Measurement
from benchmarks.report import QUICK, save
from common.process import tune_allocator
from common.settings.settings import from_arguments, setting

PARTS = ("steps", "blocks", "texts", "decoding", "encoder", "decode", "prefill", "products")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentsConfig:
    """Which parts to measure, and how long."""

    parts: tuple[str, ...] = setting(PARTS, help=f"parts to measure, of {', '.join(PARTS)}")
    cores: str = setting("0", help="cores to run on, with commas")
    seconds: float = setting(0.5, minimum=0.001, help="time of each small measurement")
    quick: bool = setting(False, help="tiny sizes, to see that everything runs")
    json: Path | None = setting(None, help="file for the results")
    plots: Path | None = setting(None, help="folder for the plot of growth, PNG; needs matplotlib")

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"--parts knows no {', '.join(sorted(unknown))}")


def run(options: argparse.Namespace) -> int:
    """Measure, print as it goes, write the files."""
    config = from_arguments(ComponentsConfig, options)
    tune_allocator()
    cores = {int(core) for core in config.cores.split(",")}
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    measurements = []
    if config.quick:
        sys.stdout.write(QUICK)
    for part in config.parts:
        for measurement in measure(part, config):
            measurements.append(measurement)
            sys.stdout.write(f"{line(measurement)}\n")
            sys.stdout.flush()
    if config.json is not None:
        save(config.json, "components", {"cores": len(cores), "measurements": measurements})
    if config.plots is not None:
        from benchmarks.components.plots import plot_growth

        sys.stdout.write(f"{plot_growth(measurements, config.plots)}\n")
    return 0


def measure(part: str, config: ComponentsConfig) -> Iterator[Measurement]:
    """The measurements of one part of `PARTS`."""
    quick, seconds = config.quick, config.seconds
    model = "smoke" if quick else "small"
    match part:
        case "steps":
            yield from measure_steps(
                running=(1, 4) if quick else (1, 32, 64, 128, 256, 512),
                contexts=(64, 256) if quick else (64, 256, 1024, 4096, 16384),
                waiting=(10, 20) if quick else (10, 100, 1000, 10000),
            )
        case "blocks":
            yield from measure_blocks(seconds)
        case "texts":
            yield from measure_texts(seconds)
        case "decoding":
            sizes = ((64, 64),) if quick else ((256, 256), (1024, 1024), (4032, 3024))
            yield from measure_decoding(seconds, sizes=sizes)
        case "encoder":
            sides = (64,) if quick else (128, 256, 512, 1024)
            yield from measure_encoder("smoke-pixtral" if quick else "pixtral", seconds, sides=sides)
        case "decode":
            yield from measure_decode(model, batches=(1, 2) if quick else (1, 4, 8, 16, 32), steps=2 if quick else 16)
        case "prefill":
            yield from measure_prefill(model, lengths=(16,) if quick else (64, 256, 1024, 2048))
        case "products":
            yield from measure_products(seconds, rows=(1, 4) if quick else (1, 4, 8, 16, 32, 64, 512))


def line(measurement: Measurement) -> str:
    """One measurement as text."""
    value = measurement.value
    return (
        f"{measurement.component:<26}{measurement.at:<42}{value.median:>12.4g} {measurement.unit}"
        f"   ({value.lowest:.4g} to {value.highest:.4g})"
    )
