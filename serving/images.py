"""An uploaded PNG or JPEG becomes one input. Sizes are read from the header, before a single pixel is decoded."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redoubt.errors import InvalidInput
from serving.problems import TooLarge

FORMATS = ("PNG", "JPEG")
# Pillow would print a warning for a big picture; the bound in `decode_image` follows at once and is tighter.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_PNG_END = b"IEND\xaeB`\x82"
_OPAQUE = {"1", "L", "RGB", "P"}
_WITH_ALPHA = {"LA", "RGBA"}


def decode_image(data: bytes, shape: tuple[int, int, int], *, max_side: int) -> Tensor:
    """One picture as float32 [1, C, H, W] in [0, 1].

    Grey and colour are converted into each other as the model needs; the size is never changed.

    Args:
        shape: (channels, height, width) that the model takes; channels 1 or 3.
        max_side: largest width or height that is looked at.

    Raises:
        InvalidInput: not a PNG or JPEG, truncated, of another size, transparent, or not 8 bits a sample.
        TooLarge: wider or higher than `max_side`.
    """
    if not data:
        raise InvalidInput("the body is empty: send one PNG or JPEG")
    channels, height, width = shape
    if channels not in (1, 3):
        raise InvalidInput(f"the model takes {channels} channels, which no picture has: use the infer endpoint")
    try:
        image = _open(data)
        if max(image.size) > max_side:
            raise TooLarge(f"the picture is {image.width}x{image.height} pixels, more than {max_side} on a side")
        if image.size != (width, height):
            raise InvalidInput(
                f"the picture is {image.width}x{image.height} pixels: the model takes exactly {width}x{height}"
            )
        if image.format == "PNG" and _PNG_END not in data:
            raise InvalidInput("the picture is truncated: a PNG ends with an IEND chunk")
        image.load()
        pixels = np.asarray(_convert(image, "L" if channels == 1 else "RGB"))
    except (InvalidInput, TooLarge):
        raise
    except Exception as error:   # a hostile file may raise anything from the decoder
        raise InvalidInput(f"the picture cannot be decoded, it is truncated or damaged: {error}") from None
    pixels = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255)).unsqueeze(0)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise TooLarge("the picture has far too many pixels") from None
    except Image.UnidentifiedImageError:
        raise InvalidInput("the body is neither a PNG nor a JPEG") from None


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in _WITH_ALPHA:
        if image.getchannel("A").getextrema() != (255, 255):
            raise InvalidInput("the picture has transparent pixels: flatten it first")
    elif image.mode not in _OPAQUE:
        raise InvalidInput(f"the picture's pixel format {image.mode} is not taken: send 8-bit grey or RGB")
    if image.mode == "P":
        image = image.convert("RGB")
    return image.convert(mode)
