"""Reading images: every source gives the same pixels, and damage is an ImageError in words."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stagebeam.engine.errors import ImageError
from stagebeam.engine.models.images import MAX_PIXELS, load_image, thumbnail_png

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def scene(width: int = 60, height: int = 40) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header announces a size that its data does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_every_source_gives_the_same_pixels(tmp_path):
    data = encoded(scene())
    path = tmp_path / "scene.png"
    path.write_bytes(data)
    sources = [data, bytearray(data), memoryview(data), path, str(path), scene(), Image.open(path)]
    for source in sources:
        assert np.array_equal(np.asarray(load_image(source)), np.asarray(scene()))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "LA", "RGBA", "I;16", "F"])
def test_every_mode_becomes_rgb(mode):
    image = scene().convert("L").convert(mode) if mode in ("I;16", "F") else scene().convert(mode)
    assert load_image(image).mode == "RGB"
    assert load_image(image).size == (60, 40)


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert load_image(encoded(clear)).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9])
    assert load_image(encoded(palette, transparency=0)).getpixel((1, 1)) == (255, 255, 255)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    assert load_image(encoded(scene(), "JPEG", exif=exif)).size == (40, 60)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_the_source_is_not_changed():
    image = Image.new("RGBA", (2000, 10))
    load_image(image)
    thumbnail_png(image)
    assert (image.mode, image.size) == ("RGBA", (2000, 10))


def test_a_thumbnail_is_a_small_png():
    small = Image.open(io.BytesIO(thumbnail_png(Image.new("RGB", (3000, 1000)))))
    assert (small.format, small.size) == ("PNG", (512, 171))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused(kind, share):
    data = encoded(scene(200, 150), kind)
    with pytest.raises(ImageError, match=r"cannot be read|truncated or corrupt"):
        load_image(data[: int(share * len(data))])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about odd TIFF tags
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_image_is_an_image_or_an_image_error(kind):
    data = encoded(scene(), kind)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        damaged = bytearray(data)
        for place in torch.randint(0, len(data), (3,), generator=generator).tolist():
            damaged[place] = int(torch.randint(0, 256, (1,), generator=generator))
        with suppress(ImageError):
            load_image(damaged)


@pytest.mark.parametrize(
    ("width", "height"),
    [(50_000, 50_000), (9_000, 8_000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)],
)
def test_a_decompression_bomb_is_refused_before_decoding(width, height):
    with pytest.raises(ImageError, match=r"too large"):
        load_image(png_claiming(width, height))


def test_a_large_pil_image_is_refused_with_the_arithmetic():
    with pytest.raises(
        ImageError, match=r"8192 x 8193 is 67117056 pixels, expected at most 67108864"
    ):
        load_image(Image.new("1", (8192, 8193)))


def test_a_compressed_text_bomb_is_refused():
    text = b"k\0\0" + zlib.compress(b"\0" * (80 << 20))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    data = encoded(scene())
    with pytest.raises(ImageError, match=r"cannot be read|truncated or corrupt"):
        load_image(data[:33] + chunk + data[33:])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "0 bytes"),
        (b"not an image at all", "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read"),
        ("nowhere.png", "'nowhere.png' is not a file"),
        (Path(__file__).parent, "is not a file"),
        (Path(__file__), "cannot be read"),
        (17, "got int"),
        ([1, 2], "got list"),
        (np.zeros((4, 4, 3)), "got ndarray"),
        (Image.new("RGB", (0, 5)), "no pixels"),
    ],
)
def test_wrong_sources(source, words):
    with pytest.raises(ImageError, match=words):
        load_image(source)
