"""How many cores a process may compute on.

Knows Linux's affinity, and that a container may have less (see `cgroup`). Does not know torch, or who computes.
"""

import os
from pathlib import Path

from common.model.cgroup import num_cores_of


def num_cores(root: Path = Path("/")) -> int:
    """Cores that this process may run on, at most as many as a container, whose file system is at `root`, has time for.

    With more threads than that, all of them are stopped in the middle of a step once a period's time is used up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = num_cores_of(root)
    return cores if limit is None else max(1, min(cores, int(limit)))


def num_threads() -> int:
    """Threads that this process may compute with: what OMP_NUM_THREADS says, else one for each of its cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else num_cores()
