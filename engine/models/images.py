"""Reading a user's image: a path, bytes or a PIL image to an upright RGB image.

Knows nothing of the model. Nothing is decoded before its declared size has been checked, and every
fault is an `ImageError` in words.
"""

from __future__ import annotations

import io
import os
import struct
import zlib

from PIL import Image, ImageOps, UnidentifiedImageError

from stagebeam.engine.errors import ImageError

MAX_PIXELS = 64 << 20  # decoded, 192 MiB: more is a decompression bomb or of no use to 4 tiles
THUMBNAIL_SIDE = 512

# Raster formats that Pillow decodes itself; others would start external programs or fetch files.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")

# What Pillow's decoders raise on damaged data.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
)

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image


def load_image(source: ImageSource) -> Image.Image:
    """The image, decoded, turned upright by its EXIF tag and laid on white where transparent."""
    if isinstance(source, Image.Image):
        return _decoded(source, "the PIL image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageError("the image is empty: 0 bytes")
        return _opened(io.BytesIO(source), f"the image of {len(source)} bytes")
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not os.path.isfile(path):
            raise ImageError(f"image {path!r} is not a file; give a path, bytes or a PIL image")
        return _opened(path, f"image {path!r}")
    raise ImageError(f"an image must be a path, bytes or a PIL image, got {type(source).__name__}")


def thumbnail_png(image: Image.Image) -> bytes:
    """A small PNG for reports, at most THUMBNAIL_SIDE on its longer side."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return buffer.getvalue()


def _opened(file: str | io.BytesIO, what: str) -> Image.Image:
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]  # old Pillows lack some
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{what} is too large: {error}") from error
    except UnidentifiedImageError as error:  # its words are of an object in memory
        raise ImageError(
            f"{what} cannot be read: no known format; expected one of {', '.join(formats)}"
        ) from error
    except _DECODE_ERRORS as error:
        raise ImageError(
            f"{what} cannot be read ({error}); expected one of {', '.join(formats)}"
        ) from error
    with image:
        return _decoded(image, what)


def _decoded(image: Image.Image, what: str) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{what} has no pixels: {width} x {height}")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{what} is too large: {width} x {height} is {width * height} pixels, expected at most "
            f"{MAX_PIXELS}; scale it down (the model sees a few tiles of it)"
        )
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _on_white(upright)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{what} is too large: {error}") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{what} is truncated or corrupt: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, as HF's `convert_to_rgb`: transparency is laid on white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")
