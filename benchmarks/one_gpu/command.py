"""`python -m benchmarks one-gpu`: case G7, and how long a start takes with the whole model's weights.

Knows the command line and the order of things. Does not know loads or files. Imports little: what is missing on a host
is to be told in one line, before anything needs it.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.pair import service_flags
from benchmarks.one_gpu.packages import check_host
from benchmarks.peers.protocol import ROOT
from benchmarks.report import QUICK
from common.settings.settings import exit_with, from_arguments, setting

MODES = {"pair": (), "one process": ("--local-vision",)}
"""What `diptych up` is given besides, by the name of what then runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneGpuConfig:
    """Which loads to put on, how long, and on what."""

    device: str = setting("cuda", help="device of both halves: cuda, cuda:N or cpu")
    small: bool = setting(False, help="four of the model's forty layers, 6 GB in place of 25")
    quick: bool = setting(False, help="a tiny model and tiny pictures, to see that everything runs; best with a CPU")
    folder: Path = setting(ROOT / "build/benchmarks/checkpoints", help="where the checkpoint is written, once")
    images: tuple[str, ...] = setting(("4", "1"), help="pictures in a request, a workload each")
    text_tokens: tuple[str, ...] = setting(("400",), help="tokens of text in a request, a workload each")
    output_tokens: int = setting(150, minimum=2, help="tokens of an answer")
    rates: tuple[str, ...] = setting(("1", "2", "3"), help="requests a second, a load each, in this order")
    requests: int = setting(20, minimum=1, help="requests of a load")
    mode_seconds: float = setting(140.0, minimum=0, help="no load of a way to run begins after so many seconds of it")
    slo_ttft: float = setting(5000.0, minimum=0, help="longest time to first token of a good request, in ms")
    slo_tpot: float = setting(100.0, minimum=0, help="longest time per output token of a good request, in ms")
    engine: tuple[str, ...] = setting((), help="settings of the decoder's engine, such as max_model_len=16384")
    cores: str = setting("", help="cores of the services, with commas; where empty, all but two where there are four")
    from_disk: bool = setting(False, help="have the system forget the files before the first start")
    json: Path = setting(Path("one_gpu.json"), help="file for the figures, written anew after each")

    def __post_init__(self) -> None:
        if not all(float(rate) > 0 for rate in self.rates):
            raise ValueError("--rates must be over 0")
        if self.small and self.quick:
            raise ValueError("--small and --quick are two models")

    @property
    def shape(self) -> str:
        """Name of the model's shape."""
        return "quick" if self.quick else "small" if self.small else "12b"


def run(options: argparse.Namespace) -> int:
    """Write the checkpoint, start each way to run and load it, compare; 1 where a request failed."""
    config = from_arguments(OneGpuConfig, options)
    try:
        notes = check_host()
    except ValueError as error:
        exit_with("one-gpu", str(error))
    # Imported late: what it needs is known to be here only now.
    from benchmarks.one_gpu.case import Case

    if config.quick:
        sys.stdout.write(QUICK)
    build_kernels()
    model = prepared_checkpoint(config)
    case = Case(config, model, notes)
    with service_flags([f"decoder.engine.{each}" for each in config.engine]) as flags:
        for number, mode in enumerate(MODES):
            case.measure(mode, (*MODES[mode], *flags), forget_files=config.from_disk and number == 0)
    return case.finish()


def build_kernels() -> None:
    """Build the kernels for the processor, which both halves use beside a GPU too, so that no start waits for it."""
    subprocess.run([sys.executable, "-m", "common.native"], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)


def prepared_checkpoint(config: OneGpuConfig) -> Path:
    """The checkpoint, written where it is not there yet. Exits in one line where it cannot be."""
    directory = config.folder / f"pixtral-{config.shape}"
    if not directory.exists():
        begin = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.one_gpu.checkpoint", str(directory), "--shape", config.shape]
        done = subprocess.run([*command, "--device", config.device], cwd=ROOT, check=False)  # noqa: S603
        if done.returncode:
            exit_with("one-gpu", "the checkpoint could not be written")
        size = sum(file.stat().st_size for file in directory.iterdir())
        sys.stdout.write(f"checkpoint of {size / 1e9:.1f} GB written in {time.monotonic() - begin:.1f} s\n")
    return directory
