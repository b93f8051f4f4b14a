"""The idx files of MNIST and of the data sets that follow its format."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from .split import Images, Split

_UBYTE = 0x08
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: str | Path) -> np.ndarray:
    """Reads one idx file of unsigned bytes, gzipped or not.

    Args:
        path: The file; its name is free, a gzip file is known by its first bytes.

    Returns:
        A uint8 array of the shape that the header states.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is cut short, damaged, too long or no idx file of bytes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        >>> read_idx(path)
        array([7, 8, 9], dtype=uint8)
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} is a damaged gzip file ({error}); fetch it again."
            ) from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UBYTE:
        raise ValueError(
            f"{path} starts with {raw[:4].hex() or 'nothing'}; wanted an idx file of "
            "bytes (00 00 08 and the number of axes)."
        )
    num_axes = raw[3]
    start = 4 + 4 * num_axes
    if len(raw) < start:
        raise ValueError(f"{path} ends inside its header; fetch it again.")
    shape = struct.unpack(f">{num_axes}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(raw) - start} bytes of data; its header says shape "
            f"{shape}, which is {math.prod(shape)}; fetch it again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def load_mnist(folder: str | Path) -> Split:
    """Reads a folder of the four MNIST files (or Fashion-MNIST, KMNIST, ...).

    Args:
        folder: Holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two
            `t10k-...` files, each with or without `.gz`.

    Returns:
        A `Split` named after the folder; images (n, height, width, 1) float32 in
        [0, 1], labels (n,) int32.

    Raises:
        FileNotFoundError: The folder or one of its files is missing; says which.
        ValueError: A file is damaged, or images and labels do not belong together.

    Example:
        >>> load_mnist("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no folder no/such/folder; wanted one with the idx files ...
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}; wanted one with the idx files of MNIST, such as "
            f"{_FILES['train'][0]}.gz."
        )
    parts = {name: _read_part(folder, *files) for name, files in _FILES.items()}
    sizes = {part.images.shape[1:] for part in parts.values()}
    if len(sizes) > 1:
        raise ValueError(
            f"{folder} holds images of two sizes, {sorted(sizes)}; wanted one data set."
        )
    return Split(folder.resolve().name, parts["train"], parts["test"])


def _read_part(folder: Path, image_file: str, label_file: str) -> Images:
    paths = [_find(folder, name) for name in (image_file, label_file)]
    pixels, labels = map(read_idx, paths)
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
        raise ValueError(
            f"{paths[0].name} has shape {pixels.shape} and {paths[1].name} "
            f"{labels.shape}; wanted (n, height, width) and (n,) with the same n."
        )
    if not len(labels):
        raise ValueError(f"{paths[0]} holds no images; wanted at least one.")
    images = (pixels[..., None] / 255).astype(np.float32)
    return Images(images, labels.astype(np.int32))


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} has neither {name} nor {name}.gz; put it there.")
