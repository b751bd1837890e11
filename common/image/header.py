"""A picture file's header: format, upright size and orientation, without touching a pixel.

Knows where JPEG, PNG, WebP and GIF keep their size and their EXIF block. Does not decode: not even a
compressed text chunk is inflated, nothing is allocated by what a file claims, and the number of segments
looked at is bounded, so a decompression bomb costs as little as any other file. Both services use it, so
that there is one rule for orientation: the EXIF block's, where the file has one before its pixels.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from common.errors import InvalidArgumentError

_MAX_SEGMENTS = 4096
"""More segments than any camera writes; a file of nothing but tiny segments ends here."""

_OTHER_FORMATS = (
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"8BPS", b"%PDF", b"%!PS", b"<svg", b"<?xml"),
    *(b"\0\0\1\0", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\xff\x0a", b"\0\0\0\x0cJXL ", b"SIMPLE  ="),
)
"""First bytes of formats that are known and refused: TIFF, BMP, PSD, PDF, PostScript, SVG, ICO, JPEG 2000, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """How large a picture may be before anything is decoded."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What a file says of its picture."""

    format: str
    """JPEG, PNG, WEBP or GIF, as Pillow names them."""
    width: int
    """Pixels in a row of the upright picture, after the orientation is applied."""
    height: int
    """Rows of the upright picture."""
    orientation: int
    """EXIF orientation, 1 (upright) to 8; from 5 on, the stored sides are swapped."""

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height as stored, before the orientation is applied."""
        return (self.width, self.height) if self.orientation < 5 else (self.height, self.width)


class _Stored(NamedTuple):
    """Size as stored, and the EXIF block if there is one."""

    width: int
    height: int
    exif: bytes


def read_image_header(data: bytes, limits: ImageLimits, *, field: str) -> ImageHeader:
    """Read the header of an image file and hold it against the limits.

    Raises InvalidArgumentError naming `field`: IMAGE_TOO_LARGE with the limit and what it got, IMAGE_FORMAT
    for a known format that is not served, IMAGE_UNDECODABLE for anything else.
    """
    if len(data) > limits.max_bytes:
        raise _too_large("bytes", limits.max_bytes, len(data), field)
    name, read = _reader(data, field)
    try:
        stored = read(data)
    except (struct.error, IndexError, ValueError):
        stored = None
    if stored is None or not stored.width or not stored.height:
        raise undecodable(field)
    if stored.width * stored.height > limits.max_pixels:
        raise _too_large("pixels", limits.max_pixels, stored.width * stored.height, field)
    orientation = _orientation(stored.exif)
    width, height = stored.width, stored.height
    if orientation >= 5:
        width, height = height, width
    return ImageHeader(format=name, width=width, height=height, orientation=orientation)


def undecodable(field: str) -> InvalidArgumentError:
    """The refusal of bytes that are no whole picture; its text is fixed, whatever the decoder said."""
    return InvalidArgumentError("IMAGE_UNDECODABLE", "the bytes are not a whole image", field=field)


def _too_large(unit: str, limit: int, got: int, field: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "IMAGE_TOO_LARGE",
        f"the image has {got} {unit}; at most {limit} are accepted",
        field=field,
        metadata={"limit": limit, "got": got, "unit": unit},
    )


def _reader(data: bytes, field: str) -> tuple[str, Callable[[bytes], _Stored | None]]:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG", _read_jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", _read_png
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP", _read_webp
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF", _read_gif
    if data.startswith(_OTHER_FORMATS) or data[4:8] == b"ftyp":
        raise InvalidArgumentError("IMAGE_FORMAT", "images must be JPEG, PNG, WebP or GIF", field=field)
    raise undecodable(field)


def _read_jpeg(data: bytes) -> _Stored | None:
    size, exif = None, b""
    for marker, body in islice(_jpeg_segments(data), _MAX_SEGMENTS):
        if marker == 0xDA:  # The scan: pixels follow.
            return _Stored(*size, exif) if size else None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, body + 1)
            size = (width, height)
        elif marker == 0xE1 and not exif and data[body : body + 6] == b"Exif\0\0":
            (length,) = struct.unpack_from(">H", data, body - 2)
            exif = data[body + 6 : body - 2 + length]
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and start of the body of every segment; for markers without a body, where the next one may be."""
    at = 2
    while True:
        at = data.index(b"\xff", at) + 1  # Junk between segments is skipped, as decoders do.
        marker = data[at]
        if marker == 0xFF or marker <= 0x01 or 0xD0 <= marker <= 0xD9:
            yield 0, at  # Padding, an escaped byte or a marker that stands alone.
            continue
        (length,) = struct.unpack_from(">H", data, at + 1)
        yield marker, at + 3
        at += 1 + max(length, 2)


def _read_png(data: bytes) -> _Stored | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    at = 8
    for _ in range(_MAX_SEGMENTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return _Stored(width, height, data[at + 8 : at + 8 + length])
        if kind == b"IDAT":
            return _Stored(width, height, b"")
        at += 12 + length
    return None


def _read_webp(data: bytes) -> _Stored | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return _Stored(width, height, _webp_exif(data) if data[20] & 0x08 else b"")
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return _Stored((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, b"")
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return _Stored(width & 0x3FFF, height & 0x3FFF, b"")
    return None


def _webp_exif(data: bytes) -> bytes:
    at = 12
    for _ in range(_MAX_SEGMENTS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return b""


def _read_gif(data: bytes) -> _Stored:
    width, height = struct.unpack_from("<HH", data, 6)
    return _Stored(width, height, b"")


def _orientation(exif: bytes) -> int:
    """The orientation entry of the first directory; 1 where there is none or the block is broken."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(min(count, _MAX_SEGMENTS)):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == 0x0112 and kind == 3:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
