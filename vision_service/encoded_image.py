"""One image's features, ready for the wire."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """Rows of features [num_rows, width] as little-endian bytes."""

    rows: memoryview
    num_rows: int
    width: int
