"""Hot loops: one file each, a jnp reference that is the definition.

`random_bits` gives the i-th random word of a key's stream without those before it;
`threefry_2x32` is the block cipher below it, `bit_signs` takes a word as 32 signs;
`row_column_bits` is a cheaper source for the entries of a matrix, `mix_columns` of a
tile of it from the `row_words`. `block_roll` adds blocks of rows at cyclic offsets,
`block_roll_transpose` is its adjoint, `rolled_buckets` says where each row goes;
`bucket_sum` adds rows to given buckets. `signed_slopes` takes rows of coefficients
through pairs of lines, `interval_matmul` a box through a matrix; `gram_products`
multiplies sums of outer products that are given by their factors. `round_rows` turns
rows into codes by chance, `round_transformed` rows that a small matrix mixes first;
`even_step` says how far apart their levels are, `round_by_chance` is the rounding
alone; `reflect_rows` reflects groups of rows. `pack_levels` and `unpack_levels` put
several codes in a byte; `integer_matmul` multiplies matrices of codes. `gather_rows`
sums a few weighted rows, `scatter_rows` is its adjoint; `random_matmul` multiplies by a
matrix that is drawn tile by tile, `random_matmul_transpose` by its transpose,
`random_tile` is some of its columns; `walsh_hadamard` is the transform.

`magnitude_of_rank` is the k-th largest without sorting; `pack_bits` and `unpack_bits`
keep a mask in words, `count_bits` and `set_places` say how many bits are set, where.
`bin_slots` finds what is large in its bin, as codes, `bin_signs` as signs, `bin_ranks`
as it is, `largest_of_rows` a few entries of each row; `threshold_bits` adds vectors and
masks the sum. `by_pieces` takes long vectors through fast memory, `finite_sum` checks
them. `neighbour_rounds` averages with neighbours on a mesh axis, `mean_of` is its mean.
"""

from ._bin_slots import BYTE_BIN as BYTE_BIN
from ._bin_slots import WORD_BIN as WORD_BIN
from ._bin_slots import BinSlots as BinSlots
from ._bin_slots import bin_ranks as bin_ranks
from ._bin_slots import bin_signs as bin_signs
from ._bin_slots import bin_slots as bin_slots
from ._bin_slots import largest_of_rows as largest_of_rows
from ._block_roll import block_roll as block_roll
from ._block_roll import block_roll_transpose as block_roll_transpose
from ._block_roll import rolled_buckets as rolled_buckets
from ._bucket_sum import bucket_sum as bucket_sum
from ._by_pieces import by_pieces as by_pieces
from ._by_pieces import finite_sum as finite_sum
from ._gather_rows import gather_rows as gather_rows
from ._gather_rows import scatter_rows as scatter_rows
from ._gram_products import gram_products as gram_products
from ._integer_matmul import MOST_TERMS as MOST_TERMS
from ._integer_matmul import CodeGrid as CodeGrid
from ._integer_matmul import integer_matmul as integer_matmul
from ._interval_matmul import interval_matmul as interval_matmul
from ._magnitude_of_rank import magnitude_of_rank as magnitude_of_rank
from ._neighbour_rounds import mean_of as mean_of
from ._neighbour_rounds import neighbour_rounds as neighbour_rounds
from ._packed_levels import pack_levels as pack_levels
from ._packed_levels import unpack_levels as unpack_levels
from ._random_bits import bit_signs as bit_signs
from ._random_bits import random_bits as random_bits
from ._random_bits import threefry_2x32 as threefry_2x32
from ._random_matmul import random_matmul as random_matmul
from ._random_matmul import random_matmul_transpose as random_matmul_transpose
from ._random_matmul import random_tile as random_tile
from ._reflect_rows import reflect_rows as reflect_rows
from ._round_rows import RoundedRows as RoundedRows
from ._round_rows import even_step as even_step
from ._round_rows import round_by_chance as round_by_chance
from ._round_rows import round_rows as round_rows
from ._round_transformed import round_transformed as round_transformed
from ._row_column_bits import mix_columns as mix_columns
from ._row_column_bits import row_column_bits as row_column_bits
from ._row_column_bits import row_words as row_words
from ._set_bits import count_bits as count_bits
from ._set_bits import pack_bits as pack_bits
from ._set_bits import set_places as set_places
from ._set_bits import unpack_bits as unpack_bits
from ._signed_slopes import signed_slopes as signed_slopes
from ._threshold_bits import ThresholdBits as ThresholdBits
from ._threshold_bits import threshold_bits as threshold_bits
from ._walsh_hadamard import walsh_hadamard as walsh_hadamard
