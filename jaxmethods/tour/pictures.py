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
