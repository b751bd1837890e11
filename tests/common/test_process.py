import os
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import is_running

TOUCH = """
import resource, sys
from common.process import tune_allocator
if sys.argv[1] == "tuned": tune_allocator()
size = 2 << 20
for _ in range(30): buffers = [b"x" * size for _ in range(8)]; del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
RESIDENT = """
import re, sys
from pathlib import Path
from common.process import give_memory_back, tune_allocator
tune_allocator()
chunks = [b"x" * (1 << 20) for _ in range(200)]
del chunks
if sys.argv[1] == "given": give_memory_back()
print(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
PARENT = """
import os, subprocess, sys
from functools import partial
from common.process import die_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
                         stdout=subprocess.PIPE, preexec_fn=partial(die_with_parent, os.getpid()))
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", TOUCH, how], capture_output=True, text=True, check=True)  # noqa: S603
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc only")
def test_a_tuned_allocator_reuses_the_pages_of_large_buffers() -> None:
    assert faults("tuned") < faults("plain") / 5


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc only")
def test_what_is_free_after_loading_goes_back_to_the_system() -> None:
    given, kept = (
        int(subprocess.run([sys.executable, "-c", RESIDENT, how], capture_output=True, check=True).stdout)  # noqa: S603
        for how in ("given", "kept")
    )
    assert given + 150_000 < kept


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_child_dies_with_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=False, timeout=20)  # noqa: S603
    assert done.returncode == -signal.SIGKILL
    # Its parent is not there to collect it, so its entry may wait for the reaper.
    end = time.monotonic() + 10
    while is_running(int(done.stdout)):
        assert time.monotonic() < end
        time.sleep(0.02)
