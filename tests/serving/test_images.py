import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from redoubt.errors import InvalidInput
from serving.images import decode_image
from serving.problems import TooLarge


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)


def test_grey_png_is_exact(grey):
    x = decode_image(encoded(Image.fromarray(grey)), (1, 8, 8), max_side=64)
    np.testing.assert_array_equal(x[0, 0].numpy(), grey.astype(np.float32) / np.float32(255))


def test_grey_becomes_colour_and_back(grey):
    colour = decode_image(encoded(Image.fromarray(grey)), (3, 8, 8), max_side=64)
    assert colour.shape == (1, 3, 8, 8)
    assert (colour[:, 0] == colour[:, 2]).all()
    back = decode_image(encoded(Image.fromarray(np.stack([grey] * 3, -1))), (1, 8, 8), max_side=64)
    np.testing.assert_array_equal(back[0, 0].numpy(), grey.astype(np.float32) / np.float32(255))


def test_rows_and_columns_keep_their_places():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2, 5] = (255, 0, 51)
    x = decode_image(encoded(Image.fromarray(pixels)), (3, 8, 8), max_side=64)
    np.testing.assert_allclose(x[0, :, 2, 5].numpy(), [1, 0, 0.2], atol=1e-6)
    assert x.sum().item() == pytest.approx(1.2)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_other_opaque_formats_are_taken(grey, mode):
    assert decode_image(encoded(Image.fromarray(grey).convert(mode)), (1, 8, 8), max_side=64).shape == (1, 1, 8, 8)


def test_jpeg_is_taken(grey):
    assert decode_image(encoded(Image.fromarray(grey), "JPEG"), (1, 8, 8), max_side=64).shape == (1, 1, 8, 8)


def huge_png(side: int) -> bytes:
    """A tiny file whose header announces side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("side", [65, 9_000, 100_000])
def test_a_huge_picture_is_refused_before_decoding(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(TooLarge, match="pixels"):
        decode_image(huge_png(side), (1, 8, 8), max_side=64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.999, 0.97, 0.7])
def test_a_truncated_picture_is_refused(kind, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(InvalidInput, match="truncated"):
        decode_image(data[: int(len(data) * kept)], (3, 64, 64), max_side=64)


def transparent() -> Image.Image:
    return Image.new("RGBA", (8, 8), (9, 9, 9, 100))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"GIF89a" + b"\0" * 50, "neither a PNG nor a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (encoded(Image.new("L", (8, 8)), "GIF"), "neither a PNG nor a JPEG"),
        (encoded(Image.new("L", (9, 8))), "exactly 8x8"),
        (encoded(transparent()), "transparent"),
        (encoded(Image.new("I;16", (8, 8))), "8-bit"),
        (encoded(Image.new("CMYK", (8, 8)), "JPEG"), "CMYK"),
    ],
)
def test_what_is_no_input_is_refused(data, says):
    with pytest.raises(InvalidInput, match=says):
        decode_image(data, (1, 8, 8), max_side=64)


def test_a_model_with_other_channels_has_no_image_endpoint():
    with pytest.raises(InvalidInput, match="infer endpoint"):
        decode_image(encoded(Image.new("L", (8, 8))), (4, 8, 8), max_side=64)
