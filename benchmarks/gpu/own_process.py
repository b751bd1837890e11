"""Our own cases in a process of their own, as an error of the device is one of the process for good.

`own_runs` takes what it finds: lines of JSON on standard output, each a row with its table, or which case is over, with
the figures that peers are held against. Whatever else is said goes to standard error. It ends by itself where the
device computes nothing any more.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from benchmarks.gpu.cases import CASES, Bench, Case, WrongError, run_cases
from benchmarks.gpu.ceilings import measure
from benchmarks.gpu.correctness import CHECKS
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.report import Row
from benchmarks.pixtral_12b import DECODER_12B

CORRECTNESS = tuple(f"correctness of {name}" for name in CHECKS)
"""Cases by themselves, which all others follow."""

Write = Callable[[Mapping[str, object]], None]


class Lines:
    """`Reporting` to another process."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def add(self, name: str, rows: Iterable[Row]) -> list[Row]:
        """See `Reporting`."""
        taken = []
        for row in rows:
            taken.append(row)
            self._write({"table": name, "row": row})
        return taken


def main() -> None:
    """Run the cases, in the order that is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.own_process", description=__doc__)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write(line: Mapping[str, object]) -> None:
        output.write(json.dumps(line) + "\n")
        output.flush()

    device = torch.device("cuda", 0)
    checks = {f"correctness of {name}": partial(_check, check) for name, check in CHECKS.items()}
    lines, ceilings = Lines(write), measure(device)
    limits = {"copy TB/s": ceilings.copy_bytes / 1e12, "read TB/s": ceilings.read_bytes / 1e12}
    lines.add("G0 ceilings", [{**limits, "TFLOP/s": ceilings.flops / 1e12}])
    config = replace(DECODER_12B, num_hidden_layers=4) if arguments.small else DECODER_12B
    bench = Bench(device=device, ceilings=ceilings, decoder=config, report=lines, own=OwnFigures())
    if not run_all(arguments.cases, {**checks, **CASES}, bench, write, is_lost=_is_lost):
        os._exit(0)  # Whatever cleans up asks the device to.


def run_all(
    names: Sequence[str], cases: Mapping[str, Case], bench: Bench, write: Write, *, is_lost: Callable[[], bool]
) -> bool:
    """Run cases one after another, and say of each that it is over. False where the device was lost on the way."""
    for name in names:
        failed = bool(run_cases([name], cases, bench))
        write({"over": name, "failed": failed, "figures": asdict(bench.own)})
        if is_lost():
            write({"lost": "the device"})
            return False
    return True


def _check(rows: Callable[[torch.device], Iterable[Row]], bench: Bench) -> None:
    if not all(row["right"] for row in bench.report.add("correctness", rows(bench.device))):
        raise WrongError("the CUDA path computes something else than the plain path")


def _is_lost() -> bool:
    """Whether the device refuses a simple sum: after an illegal access or the like it refuses everything."""
    try:
        return int(torch.ones(4, device="cuda").sum()) != 4
    except RuntimeError:
        return True


if __name__ == "__main__":
    main()
