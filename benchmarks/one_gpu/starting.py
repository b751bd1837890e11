"""How long a start took, by the clock and by what the services said, and how fast their files can be read at all.

Knows the services' log and files. Does not know loads.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BUFFER_BYTES = 64 << 20
_READ_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of all services, from their first process to `ready`."""

    seconds: float
    """Until all served"""
    weights_gigabytes: float | None
    """The decoder's weights, as it said; None where it said nothing of them"""
    weights_seconds: float | None
    files_from: str
    """Where the files were before: memory or disk"""
    plain_read: float
    """GB/s at which one thread reads the same files into memory that is there already, just before the start"""

    @property
    def weights_rate(self) -> float | None:
        """GB/s at which the decoder's weights came to its device."""
        if not self.weights_gigabytes or not self.weights_seconds:
            return None
        return self.weights_gigabytes / self.weights_seconds


def weights_loaded(log: Path) -> tuple[float | None, float | None]:
    """Gigabytes and seconds of the decoder's weights, from its log."""
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("message") == "weights loaded":
            return float(entry["gigabytes"]), float(entry["seconds"])
    return None, None


def read_rate(files: Sequence[Path], most_bytes: int = _READ_BYTES) -> float:
    """GB/s of reading files one after the other, up to so many bytes in all."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    buffer[:: os.sysconf("SC_PAGE_SIZE")] = bytes(len(buffer[:: os.sysconf("SC_PAGE_SIZE")]))
    num_bytes, begin = 0, time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while num_bytes < most_bytes and (count := file.readinto(buffer)):
                num_bytes += count
    return num_bytes / (time.perf_counter() - begin) / 1e9


def forget(files: Sequence[Path]) -> None:
    """Write files out to the disk, and have the system drop what it keeps of them in memory."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
