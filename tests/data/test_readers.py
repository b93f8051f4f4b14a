"""Data readers: the shipped digits, real MNIST, files that are damaged."""

import gzip
import struct

import numpy as np
import pytest

from jaxmethods import data


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    """A tiny data set in the format of MNIST: half gzipped, half plain."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 5), ("t10k", 3)):
        images = rng.integers(0, 256, (n, 4, 4))
        labels = rng.integers(0, 10, n)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        zipped = gzip.compress(idx(labels))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(zipped)
    return tmp_path


def test_digits_are_whole_and_always_the_same():
    a, b = data.load_digits(), data.load_digits()
    assert len(a.train.labels) + len(a.test.labels) == 1797
    for part, again in ((a.train, b.train), (a.test, b.test)):
        np.testing.assert_array_equal(part.images, again.images)
        assert part.images.dtype == np.float32 and part.labels.dtype == np.int32
        assert part.images.min() == 0 and part.images.max() == 1
        assert set(part.labels) == set(range(10))


def test_digits_are_the_set_of_uci(shared):
    with np.load(shared / "data" / "digits" / "digits.npz") as stored:
        pixels, labels = stored["images"], stored["target"]
    digits = data.load_digits()
    images = np.concatenate([digits.train.images, digits.test.images])
    np.testing.assert_allclose(images.sum(), pixels.sum() / 16, rtol=1e-6)
    mine = np.concatenate([digits.train.labels, digits.test.labels])
    np.testing.assert_array_equal(np.bincount(mine), np.bincount(labels))


def test_mnist_itself(shared):
    mnist = data.load_mnist(shared / "data" / "mnist")
    assert mnist.train.images.shape == (60000, 28, 28, 1)
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.train.images.dtype == np.float32 and mnist.train.images.max() == 1


def test_plain_and_gzipped_files_mix(folder):
    split = data.load_mnist(folder)
    assert split.train.images.shape == (5, 4, 4, 1)
    assert split.test.labels.shape == (3,)
    assert split.name == folder.name


IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    "name, damage, hint",
    [
        (IMAGES, lambda raw: raw[:-3], "holds 77 bytes of data; its header says"),
        (IMAGES, lambda raw: raw + b"x", "holds 81 bytes"),
        (IMAGES, lambda raw: raw[:6], "ends inside its header"),
        (IMAGES, lambda raw: b"P5" + raw, "starts with 50350000"),
        (IMAGES, lambda raw: b"", "starts with nothing"),
        (LABELS, lambda raw: raw[:-9], "damaged gzip file"),
        (LABELS, lambda raw: raw[:20] + b"\xff" + raw[21:], "damaged gzip file"),
        (LABELS, lambda raw: gzip.compress(idx(np.zeros(4))), "with the same n"),
        (IMAGES, lambda raw: idx(np.zeros((5, 3, 3))), "images of two sizes"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(folder, name, damage, hint):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=hint):
        data.load_mnist(folder)


def test_missing_folder_and_missing_file(folder):
    with pytest.raises(FileNotFoundError, match="no folder"):
        data.load_mnist(folder / "nowhere")
    (folder / LABELS).unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        data.load_mnist(folder)
