"""`python -m benchmarks service`: case C10, what the services cost.

Knows the command line, cores and where results go. Does not know how the two sides are run.
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.pair import service_flags
from benchmarks.report import QUICK, save
from benchmarks.service.overhead import OverheadResult, Sides, measure_overhead
from benchmarks.statistics import Spread
from common.model.settings import DtypeChoice
from common.settings.settings import from_arguments, setting

_SUFFIXES = {"float32": "", "bfloat16": "-bfloat16"}
"""Of the models whose weights are all of that type."""
_REAL_TIME = (
    "run this without chrt: under a real-time policy the services' event loop, though woken, waits until the engine's "
    "thread has had its 100 ms or waits itself, so that several tokens go out in each message"
)
_LOG = Path("build/benchmarks/logs/service.log")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """How large the case is."""

    service_core: int = setting(0, minimum=0, help="core of the decoder; the caller runs on another")
    spread: bool = setting(
        False, help="let the services use the caller's core too, for all but computing, by one thread"
    )
    starts: int = setting(4, minimum=1, help="how often both sides are started anew")
    rounds: int = setting(2, minimum=1, help="how often each side is measured in a start")
    engine: tuple[str, ...] = setting(
        (), help="settings of the decoder's engine to run the case with, such as max_step_stretch=1.3"
    )
    weights: str = setting("float32", help="type of the model's weights: float32 or bfloat16")
    dtype: DtypeChoice = setting(DtypeChoice.FLOAT32, help="type that engine and services compute in")
    quick: bool = setting(False, help="a tiny model, to see that everything runs")
    json: Path | None = setting(None, help="file for the results")

    def __post_init__(self) -> None:
        if self.weights not in _SUFFIXES:
            raise ValueError(f"--weights must be one of {', '.join(_SUFFIXES)}")
        if self.quick and self.weights != "float32":
            raise ValueError("--quick has no model in bfloat16")
        if not all(re.fullmatch(r"\w+=[\w.]+", each) for each in self.engine):
            raise ValueError("--engine must be settings such as max_step_stretch=1.3")


def run(options: argparse.Namespace) -> int:
    """Run the case with each setting of the engine, print medians, lowest and highest of the starts, write the file."""
    config = from_arguments(ServiceConfig, options)
    if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        raise SystemExit(_REAL_TIME)
    if config.quick:
        sys.stdout.write(QUICK)
    runs = []
    for engine in config.engine or ("",):
        found = _overheads(config, engine)
        runs.append({"engine": engine, "C10": found})
        sys.stdout.write((f"{engine}:\n" if engine else "") + "".join(map(_line, found)))
        sys.stdout.flush()
    if config.json is not None:
        save(config.json, "service", {"runs": runs})
    return 0


def _overheads(config: ServiceConfig, engine: str) -> list[OverheadResult]:
    everything = os.sched_getaffinity(0)
    # The caller must not take the decoder's core; the processes that it starts are pinned by themselves.
    os.sched_setaffinity(0, everything - {config.service_core} or everything)
    try:
        # As many threads as in one process: by default as many as there are cores.
        with service_flags(["decoder.model.threads=1", *([f"decoder.engine.{engine}"] if engine else [])]) as flags:
            sides = Sides(
                model="smoke" if config.quick else f"small{_SUFFIXES[config.weights]}",
                dtype=config.dtype.value,
                engine_core=config.service_core,
                service_cores=sorted(everything) if config.spread else [config.service_core],
                flags=flags,
                log=_LOG,
            )
            requests = (1, 2) if config.quick else (1, 8, 32)
            return measure_overhead(sides, requests, starts=config.starts, rounds=config.rounds)
    finally:
        os.sched_setaffinity(0, everything)


def _line(result: OverheadResult) -> str:
    added = result.added_ttft_ms
    more = "" if added is None else f", {_spread(added, 2)} ms more to the first token"
    return (
        f"C10 at {result.concurrency}: engine {_spread(result.in_process_rate, 1)} tok/s, "
        f"service {_spread(result.service_rate, 1)}, ratio {_spread(result.rate_ratio, 3)}{more}\n"
    )


def _spread(found: Spread, digits: int) -> str:
    return f"{found.median:.{digits}f} ({found.lowest:.{digits}f} to {found.highest:.{digits}f})"
