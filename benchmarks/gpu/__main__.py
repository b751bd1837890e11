"""Correctness first, then our own cases with Pixtral-12B's shape, then peers: `python -m benchmarks.gpu`.

Prints a table a case and writes everything to a JSON file as it comes. A case or peer that fails is named and costs no
other figure: ours run in a process beside this one, which is started anew after a case that hangs, ends it or loses the
device. By reckoning it needs 50 GB on the device, of which G8 takes what is free; `--small` needs 10.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.cases import CASES
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.own_process import CORRECTNESS
from benchmarks.gpu.own_runs import run_own
from benchmarks.gpu.peers.catalogue import PEERS
from benchmarks.gpu.peers.process import child_command, rows_of
from benchmarks.gpu.report import Report, Row

_HOW_LONG = """\
how long, by reckoning, as it has not run on a GPU yet:
  correctness 30 to 60 s; G1 and G2 60 to 90 s; G5 10 s; G3 10 to 20 s; G6 15 to 30 s; G4 30 to 60 s; G8 50 to 90 s;
  fp8 40 to 70 s; one-row 15 to 30 s; launches 20 to 40 s; all of ours 5 to 8 minutes, and with --small 2 to 3
  each peer as long as --peer-seconds at most

how to split it, as for a machine that is rented for minutes:
  python -m benchmarks.gpu --seconds 270 --peers none --cases G1,G2,G5,G3,G6,G4 --json first.json
  python -m benchmarks.gpu --seconds 240 --peers none --cases G8,fp8,one-row,launches --json second.json
  each begins with correctness; whatever is cut short leaves its rows in the file, so does SIGTERM
"""
_LEAST_SECONDS = 30.0
"""Of a peer, which takes most of them to import what it needs and to be checked"""


def main() -> None:
    """Run the chosen cases on the first device; exit with status 1 where one failed or the arithmetic is wrong."""
    arguments = _arguments()
    end_when_told()
    stop_at = time.monotonic() + arguments.seconds
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here")
    report, own = Report(arguments.json), OwnFigures()
    failed = run_own_cases(CORRECTNESS, arguments, report, own, stop_at)
    if failed and not arguments.despite_errors:
        raise SystemExit("the CUDA path computes something else than the plain path; nothing is timed")
    failed += run_own_cases([name for name in CASES if name in arguments.cases], arguments, report, own, stop_at)
    run_peers(arguments, report, own, stop_at)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def end_when_told() -> None:
    """End in order by SIGTERM, with what was started, which else would keep the device."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        epilog=_HOW_LONG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", action="store_true", help="four layers instead of forty")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where to write the figures")
    names, peers = list(CASES), [peer.name for peer in PEERS]
    parser.add_argument(
        "--cases", type=some_of(names), default=names, help=f"which of {','.join(names)}; G0 always runs"
    )
    parser.add_argument(
        "--peers", type=some_of(peers), default=peers, help=f"which of {','.join(peers)}, or none; all by default"
    )
    parser.add_argument("--peer-seconds", type=float, default=240.0, help="longest time of each peer, all its cases")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="of the whole run, after which no peer begins or goes on"
    )
    parser.add_argument(
        "--silent-seconds", type=float, default=150.0, help="a case of ours that finds nothing for so long is ended"
    )
    parser.add_argument(
        "--despite-errors", action="store_true", help="time also what computes something else than the plain path"
    )
    parser.add_argument("--gpt-fast", type=Path, help="a checkout of gpt-fast, without which it is not run")
    return parser.parse_args()


def some_of(names: Collection[str]) -> Callable[[str], list[str]]:
    """Reads names with commas between them, or none, and refuses others than these."""

    def parse(text: str) -> list[str]:
        chosen = [] if text == "none" else text.split(",")
        if unknown := [name for name in chosen if name not in names]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(names)}")
        return chosen

    return parse


def run_own_cases(
    names: Sequence[str], arguments: argparse.Namespace, report: Report, own: OwnFigures, stop_at: float
) -> list[str]:
    """Run our own cases in processes of their own; returns those that failed. None is left after `stop_at`."""
    log = arguments.json.with_suffix(".own.log")

    def run_process(left: Sequence[str]) -> Iterable[Row]:
        seconds = stop_at - time.monotonic()
        if seconds < _LEAST_SECONDS:
            return [{"not run": "no time was left"}]
        command = [sys.executable, "-m", "benchmarks.gpu.own_process", *left, *(["--small"] if arguments.small else [])]
        return rows_of(command, seconds=seconds, log=log, silent_seconds=arguments.silent_seconds)

    return run_own(names, run_process, report, own)


def run_peers(arguments: argparse.Namespace, report: Report, own: OwnFigures, stop_at: float) -> None:
    """Run those chosen that have part in the chosen cases, and add their rows; none is left after `stop_at`."""
    log = arguments.json.with_suffix(".peers.log")
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "ours.json"
        own.write(figures)
        for peer in PEERS:
            cases = [case for case in arguments.cases if case in peer.cases]
            if peer.name not in arguments.peers or not cases:
                continue
            seconds = min(arguments.peer_seconds, stop_at - time.monotonic())
            if seconds < _LEAST_SECONDS:
                report.add(f"{', '.join(cases)} beside {peer.name}", [{"not run": "no time was left"}])
                continue
            command = child_command(
                peer.name, cases, figures, seconds, small=arguments.small, gpt_fast=arguments.gpt_fast
            )
            rows = rows_of(command, seconds=seconds, log=log)
            report.add(f"{', '.join(cases)} beside {peer.name}", rows)


if __name__ == "__main__":
    main()
