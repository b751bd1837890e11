"""Bytes that calls under way may hold together.

Knows a limit and what is held. Does not know what the bytes are: picture files, features on their way to a
slow reader. What a call may hold is decided before it holds anything, so a service is full, never out of memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import ResourceExhaustedError

_RETRY_SECONDS = 0.5


class ByteBudget:
    """Counts bytes up to a limit; not for several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @property
    def limit(self) -> int:
        """Most bytes that are held."""
        return self._limit

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    def take(self, num_bytes: int) -> None:
        """Hold bytes until they are given back. Raises ResourceExhaustedError ENCODER_MEMORY_FULL."""
        if self._held + num_bytes > self._limit:
            raise ResourceExhaustedError(
                "ENCODER_MEMORY_FULL",
                "too many bytes of pictures and features are under way",
                metadata={"limit": self._limit, "got": self._held + num_bytes},
                retry_after=_RETRY_SECONDS,
            )
        self._held += num_bytes

    def give(self, num_bytes: int) -> None:
        """Let go of bytes that were taken."""
        self._held -= num_bytes

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Hold bytes while inside. Raises what `take` raises."""
        self.take(num_bytes)
        try:
            yield
        finally:
            self.give(num_bytes)
