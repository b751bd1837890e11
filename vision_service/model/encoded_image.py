"""One image's features, ready for the wire."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

from common.features.packing import pack_rows, unpack_rows, with_header
from diptych.v1 import vision_pb2


class EncodedImage(Protocol):
    """Features of one image, wherever they are."""

    @property
    def is_on_host(self) -> bool:
        """Whether `messages` is there at once."""
        ...

    def headed(self, header: vision_pb2.FeaturesHeader) -> Self:
        """The same with what the stream's first message says of them; the encoder knows no more than the rows."""
        ...

    def messages(self) -> tuple[bytes, ...]:
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

    def headed(self, header: vision_pb2.FeaturesHeader) -> "HostImage":
        """The same with a header; the first chunk is copied."""
        return HostImage(with_header(self.packed, header))

    def messages(self) -> tuple[bytes, ...]:
        """The messages."""
        return self.packed


@dataclass(frozen=True, slots=True)
class DeviceImage:
    """Features in the encoder's memory; they are copied off it whenever they are sent."""

    fetch: Callable[[], memoryview]
    """Copies the rows to the host; callable from any thread. Raises a DiptychError where the device fails."""
    header: vision_pb2.FeaturesHeader | None = None

    @property
    def is_on_host(self) -> bool:
        """No."""
        return False

    def headed(self, header: vision_pb2.FeaturesHeader) -> "DeviceImage":
        """The same with a header."""
        return replace(self, header=header)

    def messages(self) -> tuple[bytes, ...]:
        """The messages, made anew."""
        return pack_rows(self.fetch(), header=self.header)


def rows_of(image: EncodedImage) -> bytes:
    """The features themselves, copied together."""
    return b"".join(chunk.data for chunk in unpack_rows(image.messages()))
