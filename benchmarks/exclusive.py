"""Keeps others off a shared machine while something is measured.

Knows file locks. Whoever else works on the machine must take the same locks, or wait for them.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def exclusive(locks: Sequence[Path]) -> Iterator[None]:
    """Hold these files' locks, taken in this order, while inside."""
    with ExitStack() as held:
        for path in locks:
            file = held.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
