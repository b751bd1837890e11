"""The header that is read without decoding is the header that Pillow sees, and costs nothing."""

import time
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from common.errors import InvalidArgumentError
from common.image.header import ImageHeader, ImageLimits, read_image_header
from tests.pictures import LIMITS, exif, noise, save

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
SAMPLES = [save(noise(37, 21), format) for format in FORMATS] + [
    save(noise(37, 21), format, exif=exif(6)) for format in ("JPEG", "PNG", "WEBP")
]

INFLATING = zlib.compress(bytes(64 << 20), 9)


def read(data: bytes, limits: ImageLimits = LIMITS) -> ImageHeader:
    return read_image_header(data, limits, field="image")


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        read(data, limits)
    assert caught.value.field == "image"
    return caught.value


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one bit per pixel with extra chunks before its pixels, which are all there, compressed well."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x01\x00\x00\x00\x00")
    compressor = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    extra = b"".join(chunk(*parts) for parts in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (17, 33), (640, 480)])
def test_size_is_what_pillow_decodes(format: str, size: tuple[int, int]) -> None:
    header = read(save(noise(*size), format))
    assert (header.format, header.width, header.height, header.orientation) == (format, *size, 1)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"save_all": True}])
def test_every_kind_of_webp_has_a_size(options: dict[str, object]) -> None:
    for mode in ("RGB", "RGBA"):
        header = read(save(noise(45, 31, mode=mode), "WEBP", **options))
        assert (header.width, header.height) == (45, 31)


@pytest.mark.parametrize("progressive", [False, True])
def test_progressive_and_baseline_jpeg_have_a_size(progressive: bool) -> None:
    header = read(save(noise(45, 31), "JPEG", progressive=progressive))
    assert (header.width, header.height) == (45, 31)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_upright_for_every_orientation(format: str, orientation: int) -> None:
    data = save(noise(40, 20), format, exif=exif(orientation))
    header = read(data)
    with Image.open(BytesIO(data)) as image:
        assert header.stored_size == image.size
        assert (header.width, header.height) == ImageOps.exif_transpose(image).size
    assert header.orientation == orientation


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_upright(orientation: int) -> None:
    assert read(save(noise(4, 2), "JPEG", exif=exif(orientation))).orientation == 1


def test_a_broken_exif_block_is_ignored() -> None:
    block = exif(6)
    for end in range(len(block)):
        header = read(save(noise(4, 2), "PNG", exif=block[:end] or b"x"))
        assert header.orientation in (1, 6)


def test_an_exif_block_after_the_pixels_is_ignored() -> None:
    data = save(noise(4, 2), "PNG")
    block = exif(6).removeprefix(b"Exif\0\0")
    late = len(block).to_bytes(4, "big") + b"eXIf" + block + zlib.crc32(b"eXIf" + block).to_bytes(4, "big")
    assert read(data[:-12] + late + data[-12:]).orientation == 1


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF....WEBPVP8 ", b"\0" * 500])
def test_bytes_that_are_no_picture_are_undecodable(data: bytes) -> None:
    assert refusal(data).reason == "IMAGE_UNDECODABLE"


@pytest.mark.parametrize("format", ["TIFF", "BMP", "ICO", "JPEG2000", "PDF", "EPS", "PPM", "AVIF"])
def test_other_formats_are_refused(format: str) -> None:
    reason = refusal(save(noise(16, 16), format)).reason
    assert reason == ("IMAGE_UNDECODABLE" if format == "PPM" else "IMAGE_FORMAT")


def test_a_size_of_zero_is_undecodable() -> None:
    data = bytearray(save(noise(4, 2), "GIF"))
    data[6:8] = b"\0\0"
    assert refusal(bytes(data)).reason == "IMAGE_UNDECODABLE"


def test_limits_are_named_with_what_was_got() -> None:
    too_long = refusal(bytes(11), ImageLimits(max_bytes=10, max_pixels=1))
    assert too_long.reason == "IMAGE_TOO_LARGE"
    assert too_long.metadata == {"limit": "10", "got": "11", "unit": "bytes"}
    data = save(noise(10, 10))
    too_many = refusal(data, ImageLimits(max_bytes=10**6, max_pixels=99))
    assert too_many.metadata == {"limit": "99", "got": "100", "unit": "pixels"}
    assert read(data, ImageLimits(max_bytes=len(data), max_pixels=100)).width == 10


@pytest.mark.parametrize("inflated", [b"", *(kind + b"k\0\0" + INFLATING for kind in (b"zTXt", b"iCCP"))])
def test_a_bomb_costs_no_time_and_no_memory(inflated: bytes) -> None:
    chunks = ((inflated[:4], inflated[4:]),) if inflated else ()
    data = png(13000, 13000, *chunks)
    tracemalloc.start()
    start = time.process_time()
    error = refusal(data)
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.reason == "IMAGE_TOO_LARGE"
    assert seconds < 0.005
    assert peak < 100_000


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 2_000_000,
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 500_000,
        b"\xff\xd8\xff" + b"\x00" * 2_000_000,
        b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\x0dIHDR" + bytes(8) + bytes(2_000_000),
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08" + bytes(9) + b"junk\0\0\0\0" * 200_000,
    ],
    ids=["padding", "tiny segments", "junk", "png", "webp"],
)
def test_a_file_of_tiny_segments_is_given_up_soon(data: bytes) -> None:
    start = time.process_time()
    with suppress(InvalidArgumentError):
        read(data)
    assert time.process_time() - start < 0.05


@settings(max_examples=300, deadline=None)
@given(sample=st.sampled_from(SAMPLES), data=st.data())
def test_a_mangled_file_is_read_or_refused_and_never_anything_else(sample: bytes, data: st.DataObject) -> None:
    mangled = bytearray(sample[: data.draw(st.integers(0, len(sample)), label="length")])
    places = st.tuples(st.integers(0, min(len(mangled), 300)), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, max_size=4), label="changes"):
        mangled[place : place + 1] = bytes([value])
    with suppress(InvalidArgumentError):
        header = read(bytes(mangled))
        assert 0 < header.width * header.height <= LIMITS.max_pixels


@settings(max_examples=300, deadline=None)
@given(sample=st.sampled_from(SAMPLES), place=st.integers(0, 200), value=st.integers(0, 255))
def test_what_pillow_decodes_has_the_size_that_was_read(sample: bytes, place: int, value: int) -> None:
    mangled = bytearray(sample)
    mangled[place] = value
    refusals = (InvalidArgumentError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
    with warnings.catch_warnings(), suppress(*refusals):
        warnings.simplefilter("ignore")
        header = read(bytes(mangled), ImageLimits(max_bytes=10**6, max_pixels=10_000))
        with Image.open(BytesIO(bytes(mangled)), formats=(header.format,)) as image:
            image.load()
        # A GIF whose first frame is larger than its canvas is the one that Pillow enlarges.
        assert image.size == header.stored_size or header.format == "GIF"
