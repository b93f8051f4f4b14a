"""Hot loops: one file each, a jnp reference that is the definition.

`random_bits` gives the i-th random word of a key's stream without those before it;
`threefry_2x32` is the block cipher below it. `block_roll` adds blocks of rows at
cyclic offsets, `block_roll_transpose` is its adjoint, `rolled_buckets` says where each
row goes; `bucket_sum` adds rows to given buckets. `signed_slopes` takes rows of
coefficients through pairs of lines, `interval_matmul` a box through a matrix;
`gram_products` multiplies sums of outer products that are given by their factors.
"""

from ._block_roll import block_roll as block_roll
from ._block_roll import block_roll_transpose as block_roll_transpose
from ._block_roll import rolled_buckets as rolled_buckets
from ._bucket_sum import bucket_sum as bucket_sum
from ._gram_products import gram_products as gram_products
from ._interval_matmul import interval_matmul as interval_matmul
from ._random_bits import random_bits as random_bits
from ._random_bits import threefry_2x32 as threefry_2x32
from ._signed_slopes import signed_slopes as signed_slopes
