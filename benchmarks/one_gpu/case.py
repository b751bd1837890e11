"""Case G7: the same loads on the pair and on one process with both halves, one after the other on the same device.

Knows how a way to run is started and loaded, and writes what it found after every load. Does not know the command line.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load.command import LoadConfig, Loop, load
from benchmarks.load.figures import figures
from benchmarks.load.pair import running_pair
from benchmarks.one_gpu.comparison import Measured, compare
from benchmarks.one_gpu.starting import Start, forget, read_rate, weights_loaded
from benchmarks.peers.protocol import ROOT
from benchmarks.report import save

if TYPE_CHECKING:
    from benchmarks.one_gpu.command import OneGpuConfig

_LOGS = ROOT / "build/benchmarks/logs"
_LOG_LINES = 30
_WARM_UP = 4
_START_SECONDS = "240"


class Case:
    """One run of the case: starts, loads and what came of them."""

    def __init__(self, config: "OneGpuConfig", model: Path, notes: list[str]) -> None:
        """Measure a checkpoint; `notes` are kept with the figures."""
        self._config = config
        self._model = model
        self._files = sorted(model.glob("*.safetensors"))
        self._services, self._client = split_cores(config.cores, sorted(os.sched_getaffinity(0)))
        self._notes = [*notes, *_devices()]
        self._failures: list[str] = []
        self._starts: dict[str, Start] = {}
        self._loads: list[Measured] = []

    def measure(self, mode: str, flags: tuple[str, ...], *, forget_files: bool) -> None:
        """Start a way to run and put all loads on it for which there is time; one that does not start is noted."""
        try:
            self._measure(mode, flags, forget_files=forget_files)
        except RuntimeError as error:
            # With the figures, as the log itself may stay on another machine.
            log = _log_file(mode)
            self._failed(f"{mode}: {error}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:]))

    def _measure(self, mode: str, flags: tuple[str, ...], *, forget_files: bool) -> None:
        if forget_files:
            forget(self._files)
        plain = read_rate(self._files[-1:])
        if forget_files:
            forget(self._files)
        log = _log_file(mode)
        flags = ("--device", self._config.device, "--start-seconds", _START_SECONDS, *flags)
        begin = time.monotonic()
        with running_pair(self._model, cores=self._services, log=log, flags=flags) as pair:
            seconds = time.monotonic() - begin
            gigabytes, weights_seconds = weights_loaded(log)
            self._starts[mode] = Start(
                seconds=seconds,
                weights_gigabytes=gigabytes,
                weights_seconds=weights_seconds,
                files_from="disk" if forget_files else "memory",
                plain_read=plain,
            )
            self._say(_start_line(mode, self._starts[mode]))
            with _pinned(self._client):
                self._put_loads(mode, pair.address)

    def _put_loads(self, mode: str, address: str) -> None:
        begin = time.monotonic()
        for number, load_config in enumerate(self._load_configs()):
            if time.monotonic() - begin > self._config.mode_seconds:
                self._say(f"{mode}: no time for the loads from number {number + 1} on\n")
                return
            try:
                found = figures(asyncio.run(load(address, load_config)), load_config.slo)
            except ValueError as error:
                self._failed(f"{mode}, {_name(load_config)}, {load_config.rate:g} a second: {error}")
                continue
            self._loads.append(Measured(mode=mode, load=_name(load_config), rate=load_config.rate, figures=found))
            self._say(self._loads[-1].line())

    def _load_configs(self) -> Iterator[LoadConfig]:
        """All loads in their order; each has texts and pictures of its own, so that no cache knows them."""
        config = self._config
        workloads = product(config.text_tokens, config.images)
        for number, ((text, images), rate) in enumerate(product(workloads, config.rates)):
            yield LoadConfig(
                loop=Loop.OPEN,
                rate=float(rate),
                requests=config.requests,
                warm_up=_WARM_UP,
                concurrency=_WARM_UP,
                text_tokens=text,
                output_tokens=str(config.output_tokens),
                images=images,
                image_sizes=("32x32" if config.quick else "640x640",),
                slo_ttft=config.slo_ttft,
                slo_tpot=config.slo_tpot,
                seed=number,
            )

    def finish(self) -> int:
        """Say how the ways to run compare; 1 where a start, a load or a request failed."""
        for each in compare(self._loads):
            sys.stdout.write(each.line())
        return 1 if self._failures or any(each.figures.num_failed for each in self._loads) else 0

    def _failed(self, what: str) -> None:
        self._failures.append(what)
        self._say(f"{what}\n")

    def _say(self, text: str) -> None:
        """Print, and write all that there is, so that a run cut short has said something."""
        sys.stdout.write(text)
        sys.stdout.flush()
        found = {
            "config": self._config,
            "notes": self._notes,
            "failures": self._failures,
            "starts": self._starts,
            "loads": self._loads,
            "comparisons": compare(self._loads),
        }
        save(self._config.json, "one-gpu", found)


def split_cores(given: str, cores: list[int]) -> tuple[list[int], list[int]]:
    """Cores of the services and of the client: what is given, else two for the client where four are there."""
    if given:
        services = [int(core) for core in given.split(",")]
        return services, [core for core in cores if core not in services] or cores
    return (cores[2:], cores[:2]) if len(cores) >= 4 else (cores, cores)


@contextmanager
def _pinned(cores: list[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _log_file(mode: str) -> Path:
    return _LOGS / f"one_gpu_{mode.replace(' ', '_')}.log"


def _name(load_config: LoadConfig) -> str:
    plural = "" if load_config.images == "1" else "s"
    return f"{load_config.text_tokens} tokens and {load_config.images} picture{plural}"


def _start_line(mode: str, start: Start) -> str:
    rate = start.weights_rate
    weights = (
        f"; {start.weights_gigabytes:.1f} GB of decoder's weights in {start.weights_seconds:.2f} s, {rate:.2f} GB/s"
        if rate is not None
        else ""
    )
    return (
        f"{mode}: ready after {start.seconds:.1f} s, files in {start.files_from}{weights}; "
        f"a plain read {start.plain_read:.2f} GB/s\n"
    )


def _devices() -> list[str]:
    """The GPUs of this host as their driver names them; asked of a process, as asking torch would take memory."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.splitlines()
