"""Kinds of processors that kernels are built for, and which of them this one is.

Knows features, the compiler's flags for them, and what the system must be asked for. Does not know compilers.
"""

import ctypes
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


class NativeUnavailableError(Exception):
    """There is no library for this machine, and none can be built; the message says why."""


@dataclass(frozen=True, slots=True)
class Level:
    """A kind of processor."""

    features: tuple[str, ...]
    """That /proc/cpuinfo must name."""
    flags: tuple[str, ...]
    """For the compiler."""
    has_tiles: bool = False
    """Whether its products use tiles (AMX), whose registers a process must ask the system for."""


_V3 = ("avx2", "fma", "bmi1", "bmi2", "f16c", "movbe")
_V4 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_V4_FLAGS = ("-march=x86-64-v4", "-mprefer-vector-width=512")
_TILES = "-DDIPTYCH_TILES"  # Compilers do not agree on what they call their own sign of it.
_ARM = "armv8-a"
LEVELS: Mapping[str, Level] = MappingProxyType(
    {
        "x86-64-v4-amx": Level(
            (*_V3, *_V4, "amx_tile", "amx_bf16"), (*_V4_FLAGS, "-mamx-tile", "-mamx-bf16", _TILES), has_tiles=True
        ),
        "x86-64-v4": Level((*_V3, *_V4), _V4_FLAGS),
        "x86-64-v3": Level(_V3, ("-march=x86-64-v3",)),
        _ARM: Level((), (f"-march={_ARM}",)),
    }
)
"""By name, best first."""


def cpu_levels(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The kinds that this processor is, best first; from now on the process may use all of it.

    Raises NativeUnavailableError for one that we have no flags for.
    """
    if platform.machine() == "aarch64":
        return [_ARM]
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    features = next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set())
    found = [name for name, level in LEVELS.items() if level.features and features.issuperset(level.features)]
    if not found:
        raise NativeUnavailableError(f"the processor is none of {', '.join(LEVELS)}")
    return found if not LEVELS[found[0]].has_tiles or _may_use_tiles() else found[1:]


def _may_use_tiles() -> bool:
    """Ask for the tiles' registers: the system has no room for them in a thread's state before, and may refuse."""
    answer: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return answer == 0
