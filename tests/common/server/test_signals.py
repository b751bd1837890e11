"""A service that is told to end before it serves ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_LOADING = """
import sys, time
from common.server.start import read_config
from vision_service.config import VisionConfig
read_config(VisionConfig, prog="vision_service", description=None)
print("loading", flush=True)
time.sleep(60)
"""
_AS_FIRST = ("unshare", "--pid", "--fork", "--kill-child")


def first_processes_can_be_made() -> bool:
    try:
        return subprocess.run([*_AS_FIRST, "true"], capture_output=True, check=False).returncode == 0  # noqa: S603
    except OSError:
        return False


def ended_while_loading(number: signal.Signals, before: Sequence[str] = ()) -> tuple[int, str]:
    """Exit status and errors of a service that is told to end while it loads."""
    command = [*before, sys.executable, "-c", _LOADING, "--model=m", "--port=0"]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    with subprocess.Popen(  # noqa: S603
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            pid = process.pid
            if before:
                pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
            os.kill(pid, number)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_service_that_still_loads_without_a_word(number: signal.Signals) -> None:
    assert ended_while_loading(number) == (128 + number, "")


def test_it_ends_as_the_first_process_of_a_container_too() -> None:
    if not first_processes_can_be_made():
        pytest.skip("no process can be the first of its kind here")
    assert ended_while_loading(signal.SIGTERM, _AS_FIRST) == (128 + signal.SIGTERM, "")
