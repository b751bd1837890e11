"""Servers of the served comparison as processes: readiness, pauses, and an end that leaves nothing behind."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.free_port import free_port
from benchmarks.served import process
from benchmarks.served.process import ServerError, ServerProcess, running_server
from tests.processes import state

SERVER = """
import http.server, os, pathlib, signal, subprocess, sys
port, folder, mode = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
if mode == "ends":
    sys.exit(3)
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / "pids").write_text(f"{os.getpid()} {child.pid} {os.getsid(0)} {os.environ['THREADS']}")
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if mode != "ill" and self.path == "/health" and Handler.asked > 2 else 503)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


ENVIRONMENT = {"THREADS": "1"}


def command(port: int, folder: Path, mode: str) -> list[str]:
    return [sys.executable, "-c", SERVER, str(port), str(folder), mode]


def wait_for(holds: Callable[[], bool]) -> bool:
    for _ in range(500):
        if holds():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("mode", ["well", "deaf"])
def test_a_server_is_awaited_paused_and_stopped_with_its_children(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_STOP_SECONDS", 0.5)
    port, cores = free_port(), sorted(os.sched_getaffinity(0))[:1]
    log = tmp_path / "logs/server.log"
    with running_server(
        command(port, tmp_path, mode), port=port, cores=cores, environment=ENVIRONMENT, log=log
    ) as server:
        server.wait_until_ready("/health", seconds=60)
        parent, child, session, threads = map(int, (tmp_path / "pids").read_text().split())
        assert threads == 1
        assert os.sched_getaffinity(parent) == os.sched_getaffinity(child) == set(cores)
        assert session == os.getsid(0)  # Or it would not be preferred together with us.
        assert os.getpgid(parent) == os.getpgid(child) != os.getpgid(0)
        server.pause()
        assert wait_for(lambda: {state(parent), state(child)} == {"T"})
        server.resume()
        assert wait_for(lambda: "T" not in {state(parent), state(child)})
        server.pause()  # A paused one must end too.
    assert wait_for(lambda: {state(parent), state(child)} == {"X"})


def test_a_server_that_ends_or_is_not_ready_in_time_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    for mode, seconds, reason in (("ends", 60.0, "status 3"), ("ill", 1.0, "not ready after 1 s")):
        port = free_port()
        log = tmp_path / f"{mode}.log"
        with (
            pytest.raises(ServerError, match=rf"{reason}; see {log}"),
            running_server(
                command(port, tmp_path, mode), port=port, cores=[0], environment=ENVIRONMENT, log=log
            ) as server,
        ):
            server.wait_until_ready("/health", seconds=seconds)


def test_stopping_a_server_that_has_ended_ends_the_children_it_left(tmp_path: Path) -> None:
    port = free_port()
    with running_server(
        command(port, tmp_path, "well"), port=port, cores=[0], environment=ENVIRONMENT, log=tmp_path / "log"
    ) as server:
        server.wait_until_ready("/health", seconds=60)
        parent, child = map(int, (tmp_path / "pids").read_text().split()[:2])
        os.kill(parent, signal.SIGKILL)
        assert wait_for(lambda: state(parent) == "X")
        assert state(child) != "X"
    assert wait_for(lambda: state(child) == "X")


def test_time_of_the_whole_tree_is_counted(tmp_path: Path) -> None:
    script = "import time, subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with running_server(
        [sys.executable, "-c", script], port=0, cores=[0], environment=ENVIRONMENT, log=tmp_path / "log"
    ) as server:
        assert wait_for(lambda: busy(server))


def busy(server: ServerProcess) -> bool:
    return server.processor_seconds() > 0.2
