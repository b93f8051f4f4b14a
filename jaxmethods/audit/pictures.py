"""Small grey images as data URIs, written as PNG with the standard library."""

import base64
import struct
import zlib

import numpy as np


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(image: np.ndarray) -> bytes:
    """Encodes a grey image as PNG.

    Args:
        image: (height, width), in [0, 1]; 0 is white, like ink on paper.

    Returns:
        The bytes of the file.

    Example:
        >>> png(np.zeros((8, 8)))[1:4]
        b'PNG'
    """
    pixels = np.round(255 * (1 - np.clip(image, 0, 1))).astype(np.uint8)
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def data_uri(image: np.ndarray) -> str:
    """The image as the `src` of an `<img>`."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def grey(x: np.ndarray, bounds: tuple[float, float] | None = None) -> np.ndarray | None:
    """An input as a grey image in [0, 1]; None where it is no image.

    Args:
        x: (height, width), or with one or three channels first or last, as images have
            them; sides of 4 pixels or more.
        bounds: The values of black and white; None: the least and the greatest there.

    Example:
        >>> grey(np.zeros((3, 8, 9)), (0, 1)).shape
        (8, 9)
        >>> grey(np.zeros(5)) is None
        True
    """
    if x.ndim == 3:
        axis = next((a for a in (2, 0) if x.shape[a] in (1, 3)), None)
        if axis is None:
            return None
        x = x.mean(axis)
    if x.ndim != 2 or min(x.shape) < 4:
        return None
    low, high = (x.min(), x.max()) if bounds is None else bounds
    if not (np.isfinite(low) and np.isfinite(high)):
        low, high = x.min(), x.max()
    return np.clip((x - low) / (high - low if high > low else 1), 0, 1)
