"""Puts a chunk of features in its place, and tells its checksum and whether all of its values are finite.

Knows bytes and the types of values. Does not know messages (see `common.features.features`). `common.native.chunks`
does the same in one pass over memory and on a thread of its own, where there are kernels.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from zlib_ng.zlib_ng import crc32

from common.features.feature_spec import VALUE_TYPES, ValueType

_PIECE_BYTES = 1 << 20


class Copied(NamedTuple):
    """What was found of a chunk, in the place where it now is."""

    crc32: int
    is_finite: bool

    def wait(self) -> "Copied":
        """This: nothing is left to wait for."""
        return self


class Copying(Protocol):
    """A chunk on the way to its place, which nobody else may touch before `wait` has returned."""

    def wait(self) -> Copied:
        """What was found, when all is in its place; the same each time."""
        ...


CopyChunk = Callable[[memoryview, memoryview, str], Copying]
"""Begins to copy to a place, which is as long, the bytes of whole values of a type."""


def copy_plainly(place: memoryview, data: memoryview, dtype: str) -> Copied:
    """`CopyChunk` in three passes over memory, all of which it makes at once."""
    place[:] = data
    # What is checked is what is kept: the bytes in their final place, which nobody else can change.
    return Copied(crc32(place), _is_finite(place, VALUE_TYPES[dtype]))


async def copy_in_turns(place: memoryview, data: memoryview) -> None:
    """Copy any number of bytes without holding up the event loop."""
    for start in range(0, len(data), _PIECE_BYTES):
        place[start : start + _PIECE_BYTES] = data[start : start + _PIECE_BYTES]
        await asyncio.sleep(0)


def _is_finite(values: memoryview, kind: ValueType) -> bool:
    # Read as whole numbers, what is not finite is largest: those with a sign unsigned, the others signed.
    unsigned, signed = np.frombuffer(values, f"<u{kind.size}"), np.frombuffer(values, f"<i{kind.size}")
    return bool(signed.max() < kind.exponent and unsigned.max() < kind.exponent + (1 << 8 * kind.size - 1))
