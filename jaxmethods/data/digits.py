"""The 1,797 optical digits of UCI, shipped with the package."""

from importlib import resources

import numpy as np

from .split import Images, Split

_EVERY = 5  # one image in five is for test


def load_digits() -> Split:
    """The UCI optical digits: 1,437 for training, 360 for test, 8 x 8 pixels.

    Every fifth image is for test, so that writers and digits are in both parts.

    Returns:
        A `Split`; images (n, 8, 8, 1) float32 in [0, 1], 17 grey levels; labels (n,)
        int32 in 0..9.

    Example:
        >>> digits = load_digits()
        >>> digits.train.images.shape, digits.test.images.shape
        ((1437, 8, 8, 1), (360, 8, 8, 1))

    References:
        Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
        Learning Repository, CC BY 4.0.
    """
    with resources.files("jaxmethods.data").joinpath("digits.npz").open("rb") as file:
        with np.load(file) as stored:
            pixels, labels = stored["images"], stored["target"]
    images = (pixels[..., None] / 16).astype(np.float32)
    labels = labels.astype(np.int32)
    held_out = np.arange(len(labels)) % _EVERY == 0
    train, test = (Images(images[p], labels[p]) for p in (~held_out, held_out))
    return Split("UCI digits", train, test)
