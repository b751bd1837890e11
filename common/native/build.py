"""Builds the kernels into a shared library, once for each version of their sources and each kind of processor.

Knows the compiler, its flags and where libraries are kept. Does not know what the library does. It is plain C++ with an
interface in C, so neither torch's headers nor its version matter to it.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

_SOURCES = Path(__file__).parent / "src"
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")
_LEVELS = {
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "x86-64-v3": ("avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"),
}
"""Kinds of processors, best first, and the features in /proc/cpuinfo that each must have."""
_COMPILERS = ("c++", "g++")
VERSION = 9
"""Of the library's interface in C."""
CACHE_VARIABLE = "DIPTYCH_NATIVE_CACHE"

_log = logging.getLogger(__name__)


class NativeUnavailableError(Exception):
    """There is no library for this machine, and none can be built; the message says why."""


def default_cache() -> Path:
    """Where libraries are kept: `$DIPTYCH_NATIVE_CACHE`, else a folder in the user's cache."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"


def cpu_level(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The best kind that this processor is. Raises NativeUnavailableError for one that we have no flags for."""
    if platform.machine() == "aarch64":
        return "armv8-a"
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    features = next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set())
    for level, needed in _LEVELS.items():
        if features.issuperset(needed):
            return level
    raise NativeUnavailableError(f"the processor is none of {', '.join(_LEVELS)}")


def library_path(cache: Path, level: str) -> Path:
    """Where the library of the present sources is kept, whether it is there or not."""
    digest = hashlib.sha256(" ".join(_flags(level)).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return cache / f"kernels-{level}-{digest.hexdigest()[:16]}.so"


def find_or_build(cache: Path, level: str) -> Path:
    """The library for a kind of processor, built if it is not there. Raises NativeUnavailableError.

    Several processes may ask at the same time: one builds, the others wait for it. The file appears in one piece.
    """
    path = library_path(cache, level)
    if path.exists():
        return path
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise NativeUnavailableError(f"there is no compiler, and no {path}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _build(compiler, level, path)
    except OSError as error:
        raise NativeUnavailableError(f"{cache} cannot be written to: {error.strerror}") from error
    return path


def _build(compiler: str, level: str, path: Path) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *_flags(level), str(_SOURCES / "native.cpp"), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, our own words
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise NativeUnavailableError(f"{compiler} failed: {reason}")
        built.rename(path)
    seconds = round(time.monotonic() - started, 1)
    _log.info("built kernels", extra={"path": str(path), "compiler": compiler, "seconds": seconds})


def _flags(level: str) -> tuple[str, ...]:
    wide = ("-mprefer-vector-width=512",) if level == "x86-64-v4" else ()
    return (*_FLAGS, f"-march={level}", *wide)
