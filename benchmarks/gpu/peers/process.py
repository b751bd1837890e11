"""Runs a peer in a process of its own, for so long, and takes its rows as they come.

Knows processes and lines of JSON. Whatever ends a process, with the device's memory or the device itself in whatever
state, the rows so far are there, and the last one says why there are no more.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.report import Row

_KEPT_BYTES = 4096
"""Of a log's end, in which its last line is."""


def child_command(
    name: str, cases: Sequence[str], ours: Path, seconds: float, *, small: bool, gpt_fast: Path | None
) -> list[str]:
    """What runs a peer with the figures in the file `ours`."""
    command = [sys.executable, "-m", "benchmarks.gpu.peers", name, "--cases", ",".join(cases), "--ours", str(ours)]
    command += ["--seconds", str(seconds), *(["--small"] if small else [])]
    return command + (["--gpt-fast", str(gpt_fast)] if gpt_fast is not None else [])


def rows_of(command: Sequence[str], *, seconds: float, log: Path, silent_seconds: float | None = None) -> Iterator[Row]:
    """The rows that a command writes, one a line; what it says beside them goes to the end of `log`.

    It is ended after so many seconds, and where it writes none for so many. What is no row, as half a one that it was
    ended in, is left out.
    """
    with (
        log.open("ab") as errors,
        subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process,
    ):
        reasons: list[str] = []

        def end(reason: str) -> None:
            reasons.append(reason)
            _end(process)

        def end_after(limit: float, reason: str) -> threading.Timer:
            timer = threading.Timer(limit, end, (reason,))
            timer.start()
            return timer

        def begin_silence() -> threading.Timer:
            limit = seconds if silent_seconds is None else silent_seconds
            return end_after(limit, f"it said nothing for {limit:.0f} s")

        late = end_after(seconds, f"it took more than {seconds:.0f} s")
        silence = begin_silence()
        try:
            for line in process.stdout or ():
                silence.cancel()
                with suppress(ValueError):
                    yield json.loads(line)
                silence = begin_silence()
            process.wait()
        finally:
            late.cancel()
            silence.cancel()
            _end(process)
    if reasons:
        yield {"not run": f"the rest, as {reasons[0]}"}
    elif process.returncode:
        yield {"not run": f"its process ended with {process.returncode}: {_last_line(log)}"}


def _end(process: "subprocess.Popen[str]") -> None:
    """End it, and what it started: compilers have processes of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-_KEPT_BYTES:].decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")[:300]
