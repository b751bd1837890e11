"""A peer's HTTP server as a process: started on cores, waited for, paused and stopped with all that it started.

Knows processes and sockets. Does not know which servers there are. The process has a group of its own, by which it is
stopped, and stays in the caller's session: Linux shares cores between sessions first, so one of its own would not be
preferred together with ours.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from benchmarks.peers.processor_time import processor_seconds

_STOP_SECONDS = 20


class ServerError(Exception):
    """A server did not become ready; the message is one line."""


class ServerProcess:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.port = port
        self._process = process
        self._log = log

    def wait_until_ready(self, path: str, *, seconds: float) -> None:
        """Return when a GET of the path is answered with 200. Raises ServerError where that takes too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"the server ended with status {self._process.returncode}; see {self._log}")
            if _answers(self.port, path):
                return
            time.sleep(0.25)
        raise ServerError(f"the server was not ready after {seconds:.0f} s; see {self._log}")

    def pause(self) -> None:
        """Stop all of it where it stands, so that what it does while idle takes nothing from others."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def processor_seconds(self) -> float:
        """Processor time that it and all below it have used."""
        return processor_seconds(self._process.pid)

    def stop(self) -> None:
        """End it and all that it started."""
        with suppress(ProcessLookupError):
            self.resume()
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def running_server(
    command: Sequence[str], *, port: int, cores: Sequence[int], environment: Mapping[str, str], log: Path
) -> Iterator[ServerProcess]:
    """Start a server, which is not ready yet; what it says goes to the file `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            ["taskset", "-c", ",".join(map(str, cores)), *command],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            env={**os.environ, **environment},
        )
    server = ServerProcess(process, port, log)
    try:
        yield server
    finally:
        server.stop()


def _answers(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
