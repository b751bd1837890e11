"""How many cores a process may compute on.

Knows Linux: affinity, and the time that a container has. Does not know torch, or who computes.
"""

import os
from pathlib import Path


def num_cores(root: Path = Path("/")) -> int:
    """Cores that this process may run on, and no more than a container, whose file system is at `root`, has time of.

    Threads over that time are all stopped for the rest of a period once it is used up, in the middle of a step.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return cores


def num_threads() -> int:
    """Threads that this process may compute with: what OMP_NUM_THREADS says, else one for each of its cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else num_cores()
