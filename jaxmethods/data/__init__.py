"""Readers of data files, and the digits that ship with the package: numpy only.

`load_digits` needs no file; `load_mnist` reads a folder of idx files; `read_idx` reads
one. All give images in [0, 1] and integer labels, split into training and test.
"""

from .digits import load_digits as load_digits
from .idx import load_mnist as load_mnist
from .idx import read_idx as read_idx
from .split import Images as Images
from .split import Split as Split
