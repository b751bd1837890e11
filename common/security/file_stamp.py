"""By what a file that was replaced, or written to, is told from the one before. Does not know what is in it."""

from pathlib import Path

Stamp = tuple[int, int, int]


def file_stamp(path: Path) -> Stamp:
    """Differs after any change that takes a clock's tick, another file or another size. Raises OSError."""
    state = path.stat()
    return state.st_mtime_ns, state.st_ino, state.st_size
