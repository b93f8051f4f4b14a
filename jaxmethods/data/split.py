"""What a reader of labelled images returns."""

from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """Images of shape (n, height, width, channels), float32 in [0, 1]; labels (n,).

    Example:
        >>> images = Images(np.zeros((2, 8, 8, 1), np.float32), np.array([3, 1]))
        >>> len(images.labels)
        2
    """

    images: np.ndarray
    labels: np.ndarray


class Split(NamedTuple):
    """A training and a test set of the same kind.

    Example:
        >>> part = Images(np.zeros((1, 8, 8, 1), np.float32), np.array([3]))
        >>> Split("one digit", part, part).name
        'one digit'
    """

    name: str
    train: Images
    test: Images
