"""Builds the kernels into a shared library, once for each version of their sources and each kind of processor.

Knows the compiler, its flags and where libraries are kept. Does not know what the library does. It is plain C++ with an
interface in C, so neither torch's headers nor its version matter to it.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from common.native.processor import LEVELS, NativeUnavailableError, cpu_levels

_SOURCES = Path(__file__).parent / "src"
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")
_COMPILERS = ("c++", "g++")
VERSION = 14
"""Of the library's interface in C."""
CACHE_VARIABLE = "DIPTYCH_NATIVE_CACHE"

_log = logging.getLogger(__name__)


def default_cache() -> Path:
    """Where libraries are kept: `$DIPTYCH_NATIVE_CACHE`, else a folder in the user's cache."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"


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
    compiler = _find_compiler()
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


def best_library(cache: Path) -> tuple[Path, str]:
    """The library for the best kind that this processor is and that can be had, and that kind.

    Compilers may be too old for the newest processors. Raises NativeUnavailableError where there is none.
    """
    levels = cpu_levels()
    for level in levels[:-1]:
        try:
            return find_or_build(cache, level), level
        except NativeUnavailableError as error:
            _log.warning("no kernels for all of this processor", extra={"processor": level, "reason": str(error)})
    return find_or_build(cache, levels[-1]), levels[-1]


def _find_compiler() -> str | None:
    """The one that CXX names and no other, else the first of the usual ones that is there."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else _COMPILERS
    return next(filter(None, map(shutil.which, names)), None)


def _build(compiler: str, level: str, path: Path) -> None:
    started = time.monotonic()
    _log.info("building kernels, once; this may take minutes", extra={"path": str(path), "compiler": compiler})
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
    if level not in LEVELS:
        raise NativeUnavailableError(f"{level} is none of {', '.join(LEVELS)}")
    return (*_FLAGS, *LEVELS[level].flags)
