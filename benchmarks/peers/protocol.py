"""Lines of JSON between the benchmark and an engine in a process of its own.

Knows the two ends of the line: `serve` in the engine's process, `Worker` in ours. Does not know engines. A request
is one object with `op`, an answer one object with the result or with `error`. The engine's own chatter on standard
output goes to standard error, so that it never stands between two answers. Runs in the peers' environments too, and
so imports nothing but the standard library.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from benchmarks.peers.processor_time import processor_seconds

ROOT = Path(__file__).parents[2]
Handler = Callable[..., object]
_PR_SET_PDEATHSIG = 1


class PeerError(Exception):
    """An engine could not do what it was asked; the message is one line."""


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests on standard input by the handler of their `op` until the input ends."""
    # A stopped process does not see its input end when the benchmark is killed, but is killed then like others.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            answer: dict[str, object] = {"result": handlers[request.pop("op")](**request)}
        except Exception as error:  # The other side decides whether it can go on without this answer.
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Worker:
    """An engine's process, pinned to cores.

    From its first answer on it runs only while it is asked, and is stopped where it stands otherwise: threads that wait
    by turning, as Intel's OpenMP has them for a fifth of a second, would take the cores of whoever is measured next.
    """

    def __init__(
        self,
        python: Path,
        module: str,
        *,
        cores: Sequence[int],
        environment: Mapping[str, str],
        log: Path,
        extra_paths: Sequence[str] = (),
    ) -> None:
        """Start `python -m module`; what it says beside the protocol goes to the file `log`."""
        paths = os.pathsep.join([str(ROOT), *extra_paths])
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603
                ["taskset", "-c", ",".join(map(str, cores)), str(python), "-m", module],  # noqa: S607
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                cwd=ROOT,
                env={**os.environ, **environment, "PYTHONPATH": paths},
            )

    def ask(self, op: str, **arguments: object) -> Any:  # noqa: ANN401 - what JSON may be
        """The result of one operation. Raises PeerError."""
        self._signal(signal.SIGCONT)
        try:
            return self._answer(op, arguments)
        finally:
            self._signal(signal.SIGSTOP)

    def _answer(self, op: str, arguments: Mapping[str, object]) -> Any:  # noqa: ANN401
        if self._process.stdin is None or self._process.stdout is None:
            raise PeerError("the process has no pipes")
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"the process ended; see {self._log}") from None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"the process ended; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{answer['error']}; see {self._log}")
        return answer["result"]

    def set_niceness(self, niceness: int) -> None:
        """Let the scheduler prefer the process and all that it started (below 0, as root) or others."""
        os.setpriority(os.PRIO_PGRP, self._process.pid, niceness)
        # Where Linux shares cores by sessions first, priorities count only inside of one.
        session = Path(f"/proc/{self._process.pid}/autogroup")
        if session.exists():
            session.write_text(str(niceness))

    def prefer_as_ourselves(self) -> None:
        """Let the scheduler prefer it as much as us: a session of its own begins without what ours was given."""
        ours = niceness_of_session("self")
        if ours is not None and ours != niceness_of_session(self._process.pid):
            Path(f"/proc/{self._process.pid}/autogroup").write_text(str(ours))

    def processor_seconds(self) -> float:
        """Processor time that the process and all below it have used."""
        return processor_seconds(self._process.pid)

    def close(self) -> None:
        """End the process, and all that it started and left behind."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._signal(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        # An engine's own processes may outlive it, and would go on to turn beside what is measured next.
        self._signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        """Tell the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def niceness_of_session(process: int | str) -> int | None:
    """By which Linux shares cores between the sessions; None where it does not share them so."""
    # Such as "/autogroup-12 nice -15", and nothing at all of a process in no session of its own.
    with suppress(OSError):
        words = Path(f"/proc/{process}/autogroup").read_text().split()
        return int(words[-1]) if words else None
    return None
