"""Runs both services for a load: `diptych up` on free ports, pinned to cores, with settings.

Knows the command's `ready` line and its files of settings. Does not know loads.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.peers.processor_time import processor_seconds
from benchmarks.peers.protocol import ROOT


class Pair:
    """Both services, ready."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.address = address
        self._process = process

    def processor_seconds(self) -> float:
        """Processor time of both services and all that they started."""
        return processor_seconds(self._process.pid)


@contextmanager
def running_pair(model: Path, *, cores: Sequence[int], log: Path, flags: Sequence[str] = ()) -> Iterator[Pair]:
    """Both services of a model; what they say goes to the file `log`. Raises RuntimeError where they do not start."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "diptych.cli", "up"]
    with log.open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603
            [*command, "--model", str(model), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("ready "):
            raise RuntimeError(f"the services did not start; see {log}")
        yield Pair(process, line.split()[1])
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


@contextmanager
def service_flags(settings: Sequence[str]) -> Iterator[list[str]]:
    """Flags that give the pair settings such as `decoder.engine.max_step_stretch=1.3`; none where there are none."""
    files: dict[str, dict[str, list[str]]] = {}
    for each in settings:
        name, _, value = each.partition("=")
        service, section, key = name.split(".")
        files.setdefault(service, {}).setdefault(section, []).append(f"  {key}: {value}\n")
    with TemporaryDirectory() as folder:
        flags: list[str] = []
        for service, sections in files.items():
            path = Path(folder) / f"{service}.yaml"
            path.write_text("".join(f"{section}:\n{''.join(lines)}" for section, lines in sections.items()))
            flags += [f"--{service}-config", str(path)]
        yield flags


def environment() -> dict[str, str]:
    """Ours, in which our code is found where it is not installed; what was found on PYTHONPATH before still is."""
    paths = [str(ROOT), str(ROOT / "build/gen"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
