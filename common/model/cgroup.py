"""How much of the machine's processor time and memory a container may use.

Knows the files of Linux's control groups, of version 2 and of version 1, as a container sees them below the root of its
file system. Where they are not there, or say something else, there is no limit.
"""

from collections.abc import Sequence
from pathlib import Path

_CPU: Sequence[Sequence[str]] = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""The files of either version that hold, one word after the other, quota and period."""
_MEMORY: Sequence[Sequence[str]] = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def num_cores_of(root: Path) -> float | None:
    """Cores whose time may be used; None for no limit."""
    try:
        quota, period = " ".join(_read(root, _CPU)).split()
        # "max" and -1 both say that there is none.
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def free_bytes_of(root: Path) -> int | None:
    """Memory that can still be taken; None where no limit is known. In version 1 no limit is one beyond any memory."""
    try:
        limit, used, stat = _read(root, _MEMORY)
        counts = dict(line.split() for line in stat.splitlines())
        # What files left in memory, weights that were just read above all, counts as used but goes when it is needed.
        cached = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
        return int(limit) - max(0, int(used) - cached)
    except ValueError:
        return None


def _read(root: Path, versions: Sequence[Sequence[str]]) -> list[str]:
    """The files of the version that is there; none where neither is."""
    for names in versions:
        try:
            return [(root / "sys/fs/cgroup" / name).read_text(encoding="ascii").strip() for name in names]
        except (OSError, UnicodeDecodeError):
            continue
    return []
