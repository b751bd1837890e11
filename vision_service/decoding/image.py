"""A picture's pixels: file bytes in, the resized upright picture out.

Knows Pillow and how either reference resizes. Does not know patches, tensors or models: no torch here, so
that the process that opens strangers' files stays small. The header is read first, by the same code that
the decoder service uses, and a file whose pixels then contradict its header is refused.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

# Imported for its side effect: else Pillow imports all its decoders when the first WebP file comes.
from PIL import WebPImagePlugin as WebPImagePlugin

from common.image.header import ImageLimits, read_image_header, undecodable
from common.image.preprocessing import Preprocessing, PreprocessingMode
from common.image.resizing import Resize, resize_plainly
from vision_service.decoding.cubic import resize_cubic

Pixels = NDArray[np.uint8] | NDArray[np.float32]
"""Red, green and blue on a scale of 0 to 255, [height, width, 3]; floats may lie outside the scale."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


_KEPT_BLOCKS = 4
"""Of 16 MiB each, Pillow's own size: what a photo of 12 megapixels takes, and its smaller version."""
_PAGE = 4096
_LARGEST_BLOCK = 2**31 - _PAGE


def keep_pixel_memory(max_pixels: int, *, whole: bool) -> None:
    """Let Pillow keep the memory of a process's last pictures for its next ones, up to 64 MiB, which then cost less.

    Memory that comes fresh from the system has to be cleared by it first. With `whole`, a picture of up to `max_pixels`
    is held in one piece, which kernels can read where it lies; Pillow by itself holds what is larger than 16 MiB in
    several, which must be copied for that. Then the memory of the last picture is kept, whatever its size.
    """
    if whole:
        _imaging.set_block_size(min(-(-4 * max_pixels // _PAGE) * _PAGE, _LARGEST_BLOCK))
    _imaging.set_blocks_max(1 if whole else _KEPT_BLOCKS)


def give_back_pixel_memory() -> None:
    """Give the system what `keep_pixel_memory` lets Pillow keep; the next pictures' memory may be kept again."""
    _imaging.clear_cache()


def decode_image(
    data: bytes, *, preprocessing: Preprocessing, limits: ImageLimits, field: str, resize: Resize = resize_plainly
) -> Pixels:
    """Decode the first frame of an image file and resize it to whole patches, by `resize` under mode HF.

    Returns uint8 under mode HF and float32 under mode MISTRAL, of the size of the patch grid in pixels.
    Raises InvalidArgumentError naming `field`, as `read_image_header` does; MemoryError is the caller's.
    """
    header = read_image_header(data, limits, field=field)
    try:
        with Image.open(BytesIO(data), formats=(header.format,)) as image:
            # Before the pixels are allocated. Pillow enlarges a GIF's canvas to its first frame, for one.
            if image.size != header.stored_size:
                raise undecodable(field)
            image.load()
            picture = _to_rgb(image)
    except MemoryError:
        raise
    except Exception:
        # A decoder may raise anything, and its words may name addresses of memory: the cause is dropped.
        raise undecodable(field) from None
    if header.orientation != 1:
        picture = picture.transpose(_UPRIGHT[header.orientation])
    return _resize(picture, preprocessing, resize)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency over white, 16-bit grey scaled down rather than cut off."""
    if image.mode.startswith("I"):
        high = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(high.clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    opaque = Image.new("RGB", image.size, "white")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    opaque.paste(layer, mask=layer)
    return opaque


def _resize(picture: Image.Image, preprocessing: Preprocessing, resize: Resize) -> Pixels:
    grid = preprocessing.patch_grid(picture.width, picture.height)
    width, height = grid.width * preprocessing.patch_size, grid.height * preprocessing.patch_size
    if preprocessing.mode is PreprocessingMode.MISTRAL:
        return resize_cubic(np.asarray(picture), width=width, height=height)
    return resize(picture, width, height)
