"""One image's features, ready for the wire."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from common.features.packing import pack_rows, unpack_rows


class EncodedImage(Protocol):
    """Features of one image, wherever they are."""

    @property
    def is_on_host(self) -> bool:
        """Whether `chunks` is there at once."""
        ...

    def chunks(self) -> tuple[bytes, ...]:
        """The features as messages of the stream; takes a while where they are not in the host's memory."""
        ...


@dataclass(frozen=True, slots=True)
class HostImage:
    """Features in the host's memory, as the messages that carry them: packed once, however often they are sent."""

    packed: tuple[bytes, ...]

    @classmethod
    def from_rows(cls, rows: memoryview) -> "HostImage":
        """Copy rows of features, little-endian bytes."""
        return cls(pack_rows(rows))

    @property
    def is_on_host(self) -> bool:
        """Yes."""
        return True

    def chunks(self) -> tuple[bytes, ...]:
        """The messages."""
        return self.packed


@dataclass(frozen=True, slots=True)
class DeviceImage:
    """Features in the encoder's memory; they are copied off it whenever they are sent."""

    fetch: Callable[[], memoryview]
    """Copies the rows to the host; callable from any thread. Raises a DiptychError where the device fails."""

    @property
    def is_on_host(self) -> bool:
        """No."""
        return False

    def chunks(self) -> tuple[bytes, ...]:
        """The messages, made anew."""
        return pack_rows(self.fetch())


def rows_of(image: EncodedImage) -> bytes:
    """The features themselves, copied together."""
    return b"".join(chunk.data for chunk in unpack_rows(image.chunks()))
