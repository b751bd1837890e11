"""Memory that one process shares with others on its host, read-only for them.

Uses an anonymous file of Linux. It has no name, so only a process that is handed its descriptor can open it, and
nothing is left behind however its processes end. Its owner seals it: it cannot shrink, which would kill a reader of the
missing pages, and nobody else can map it for writing. Does not know what lies in it or how a descriptor travels.
"""

import fcntl
import mmap
import os
import stat
from bisect import insort
from dataclasses import dataclass

_F_SEAL_FUTURE_WRITE = 0x10
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """Bytes of shared memory."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.size


class SharedArena:
    """The owner's side: a fixed number of bytes, given out in regions."""

    def __init__(self, size: int) -> None:
        """Make the memory, which costs nothing until it is used. Raises OSError where the system has no such files."""
        self.size = size
        self.fd = os.memfd_create("diptych-features", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            self._memory = mmap.mmap(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.fd)
            raise
        self._regions: list[Region] = []

    @property
    def bytes_taken(self) -> int:
        """Bytes that are given out."""
        return sum(region.size for region in self._regions)

    def take(self, size: int) -> Region | None:
        """A region, the first that fits, so that the same pages are used again and again; None where none does."""
        place = 0
        for region in self._regions:
            if place + size <= region.offset:
                break
            place = -(-region.end // _ALIGNMENT) * _ALIGNMENT
        if place + size > self.size:
            return None
        taken = Region(place, size)
        insort(self._regions, taken)
        return taken

    def give(self, region: Region) -> None:
        """Let go of a region that was taken."""
        self._regions.remove(region)

    def write(self, region: Region, offset: int, data: memoryview) -> None:
        """Put bytes at a place in a region. Raises ValueError where they do not fit."""
        if offset + len(data) > region.size:
            raise ValueError("the bytes do not fit into the region")
        place = region.offset + offset
        self._memory[place : place + len(data)] = data

    def close(self) -> None:
        """Let go of the memory; readers keep what they have mapped."""
        self._memory.close()
        os.close(self.fd)


def map_arena(fd: int, *, size: int) -> memoryview:
    """A reader's side: the whole memory behind a descriptor, to read.

    Raises ValueError or OSError where it is not such memory, of that size, which can never shrink.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != size or size <= 0:
        raise ValueError("the descriptor is not of memory of the announced size")
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise ValueError("the memory could shrink while it is read")
    return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
