"""`python -m benchmarks service`: cases C10 and C11 on the running pair, each as it is defined.

Knows the command line, cores and where results go. Does not know the loads.
"""

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import checkpoints
from benchmarks.exclusive import exclusive
from benchmarks.load.pair import running_pair
from benchmarks.load.prompts import PromptMaker
from benchmarks.report import QUICK, save
from benchmarks.service.overhead import OverheadResult, measure_overhead
from benchmarks.service.pictures import OpenLoopResult, PictureLoads
from common.client.client import AsyncDiptychClient
from common.model.settings import DtypeChoice
from common.settings.settings import from_arguments, setting

CASES = ("C10", "C11")
_SUFFIXES = {"float32": "", "bfloat16": "-bfloat16"}
"""Of the models whose weights are all of that type."""
_LOG = Path("build/benchmarks/logs/service.log")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Which cases to run, and how large."""

    cases: tuple[str, ...] = setting(CASES, help=f"cases to run, of {', '.join(CASES)}")
    service_core: int = setting(0, minimum=0, help="core of the decoder in C10; the caller runs on another")
    cores: str = setting("0,1", help="cores of the pair in C11, with commas")
    rounds: int = setting(5, minimum=1, help="rounds of C10")
    requests: int = setting(40, minimum=4, help="requests of each load of C11")
    engine: tuple[str, ...] = setting(
        (), help="settings of the decoder's engine to run the cases with, such as max_step_stretch=1.3"
    )
    weights: str = setting("float32", help="type of the models' weights: float32 or bfloat16")
    dtype: DtypeChoice = setting(DtypeChoice.FLOAT32, help="type that engine and services compute in")
    quick: bool = setting(False, help="tiny models, to see that everything runs")
    json: Path | None = setting(None, help="file for the results")
    lock: tuple[str, ...] = setting((), help="files to hold locked while measuring, on a machine with other users")

    def __post_init__(self) -> None:
        if unknown := set(self.cases) - set(CASES):
            raise ValueError(f"--cases knows no {', '.join(sorted(unknown))}")
        if self.weights not in _SUFFIXES:
            raise ValueError(f"--weights must be one of {', '.join(_SUFFIXES)}")
        if self.quick and self.weights != "float32":
            raise ValueError("--quick has no models in bfloat16")
        if not all(re.fullmatch(r"\w+=[\w.]+", each) for each in self.engine):
            raise ValueError("--engine must be settings such as max_step_stretch=1.3")


def run(options: argparse.Namespace) -> int:
    """Run the cases, print what they found, write the file."""
    config = from_arguments(ServiceConfig, options)
    results: dict[str, object] = {}
    if config.quick:
        sys.stdout.write(QUICK)
    with exclusive([Path(lock) for lock in config.lock]):
        results["runs"] = [_run(config, engine) for engine in config.engine or ("",)]
    if config.json is not None:
        save(config.json, "service", results)
    return 0


def _run(config: ServiceConfig, engine: str) -> dict[str, object]:
    """All cases with one setting of the engine."""
    found: dict[str, object] = {"engine": engine}
    if engine:
        sys.stdout.write(f"{engine}:\n")
    if "C10" in config.cases:
        found["C10"] = overheads = _overheads(config, engine)
        sys.stdout.write("".join(map(_overhead_line, overheads)))
    if "C11" in config.cases:
        found["C11"] = open_loops = asyncio.run(_pictures(config, engine))
        sys.stdout.write("".join(map(_open_loop_line, open_loops)))
    sys.stdout.flush()
    return found


def _overheads(config: ServiceConfig, engine: str) -> list[OverheadResult]:
    everything = os.sched_getaffinity(0)
    # The caller must not take the decoder's core; the processes that it starts are pinned by themselves.
    os.sched_setaffinity(0, everything - {config.service_core} or everything)
    try:
        with _decoder_flags(engine) as flags:
            return measure_overhead(
                "smoke" if config.quick else f"small{_SUFFIXES[config.weights]}",
                (1, 2) if config.quick else (1, 8, 32),
                engine_core=config.service_core,
                dtype=config.dtype.value,
                rounds=config.rounds,
                folder=Path(),
                log=_LOG,
                flags=flags,
            )
    finally:
        os.sched_setaffinity(0, everything)


async def _pictures(config: ServiceConfig, engine: str) -> list[OpenLoopResult]:
    model = checkpoints.checkpoint("smoke-pixtral" if config.quick else f"pixtral{_SUFFIXES[config.weights]}")
    cores = [int(core) for core in config.cores.split(",")]
    with (
        _decoder_flags(engine) as flags,
        running_pair(model, cores=cores, log=_LOG, flags=("--dtype", config.dtype.value, *flags)) as pair,
    ):
        async with AsyncDiptychClient(pair.address) as client:
            loads = PictureLoads(client, PromptMaker(client, await client.get_model_info(timeout=60)))
            return await loads.open_loops((0.5, 0.8), count=config.requests)


@contextmanager
def _decoder_flags(engine: str) -> Iterator[tuple[str, ...]]:
    """What gives the pair's decoder this setting of its engine; nothing where there is none."""
    if not engine:
        yield ()
        return
    with TemporaryDirectory() as folder:
        settings = Path(folder) / "decoder.yaml"
        settings.write_text(f"engine:\n  {engine.replace('=', ': ')}\n")
        yield "--decoder-config", str(settings)


def _overhead_line(result: OverheadResult) -> str:
    added = "" if result.added_ttft_ms is None else f", {result.added_ttft_ms:.2f} ms more to the first token"
    return (
        f"C10 at {result.concurrency}: engine {result.in_process_rate:.1f} tok/s, service {result.service_rate:.1f}, "
        f"ratio {result.rate_ratio:.3f}{added}\n"
    )


def _open_loop_line(result: OpenLoopResult) -> str:
    found = result.figures
    return (
        f"C11 at {result.part:g} of {result.capacity:.2f} requests/s: goodput {found.goodput:.2f} of "
        f"{found.request_throughput:.2f} requests/s, P99 TTFT {found.ttft.percentiles[99]:.0f} ms "
        f"(limit {result.slo.ttft:.0f}), P99 TPOT {found.tpot.percentiles[99]:.1f} ms (limit {result.slo.tpot:.1f}), "
        f"{found.num_failed} failed\n"
    )
