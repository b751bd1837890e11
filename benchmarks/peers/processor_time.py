"""A process and all that it started, and their processor time, from /proc.

Knows Linux. Needs nothing but the standard library.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def processor_seconds(pid: int) -> float:
    """User and system time of a process and its living descendants, and of its children that it has waited for."""
    ticks = 0
    for each in process_tree(pid):
        with suppress(OSError):
            ticks += sum(map(int, _fields(each)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def process_tree(pid: int) -> Iterator[int]:
    """A process and its living descendants."""
    parents: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parents.setdefault(int(_fields(int(folder.name))[1]), []).append(int(folder.name))
    todo = [pid]
    while todo:
        each = todo.pop()
        yield each
        todo.extend(parents.get(each, ()))


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on, the state: those before may hold spaces."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
