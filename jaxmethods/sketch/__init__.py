"""A smaller matrix with the same answer: random projections as linear operators.

Which one? `sparse_stack` where nothing is known of A. `less` where its leverage scores
are: it reads few rows and an inverse of the result is nearly unbiased; `less_uniform`
where no row stands out. `gaussian` and `rademacher` are dense, `srht` the fast dense
one, `countsketch` the cheapest and `sample_rows` the plainest; the inverses of the last
two are biased. `leverage_scores` and `approximate_leverage_scores` say how much each
row of A weighs.

`SparseRows`, `SparseColumns`, `BlockRoll` and `Hadamard` are operators whose entries
are given, `walsh_hadamard` the transform below the last. All operators are pytrees S
with `S @ A`, `S.T @ Y`, `S1 @ S2`, `S.shape`, `S.dense()`, `S.columns(start, size)`
(what a shard of the rows of A applies before one psum) and `S.debias(d)`, the scalar
that multiplies `inv((S A)^T S A)`; with a ridge it is
`inv((S A)^T S A / S.debias(e) + ridge I)` at the effective dimension e, as
`inverse_gram` does it. `tree` sketches a pytree, `apply_sharded` a matrix whose rows
lie on a mesh, of which `S @ A` may gather all on each device.

What they are for: `inverse_gram` estimates inv(A^T A) without bias, `newton_sketch` and
`scale_by_newton_sketch` (for optax) step along it; `lstsq` solves least squares to full
accuracy, `svd` and `nystrom` find leading singular and eigenvectors, `error_bound`
certifies those two.

`spectral` is the theory of what zeroing and quantizing the entries of a kernel matrix
costs, and clustering with what is left.
"""

from . import spectral as spectral
from ._block_roll import BlockRoll as BlockRoll
from ._error_bound import error_bound as error_bound
from ._hadamard import Hadamard as Hadamard
from ._hadamard import walsh_hadamard as walsh_hadamard
from ._inverse_gram import inverse_gram as inverse_gram
from ._lstsq import Solution as Solution
from ._lstsq import lstsq as lstsq
from ._newton_sketch import Minimum as Minimum
from ._newton_sketch import NewtonSketchState as NewtonSketchState
from ._newton_sketch import newton_sketch as newton_sketch
from ._newton_sketch import scale_by_newton_sketch as scale_by_newton_sketch
from ._nystrom import Eigenpairs as Eigenpairs
from ._nystrom import nystrom as nystrom
from ._operator import LinearOperator as LinearOperator
from ._random_entries import gaussian as gaussian
from ._random_entries import rademacher as rademacher
from ._row_sampling import less as less
from ._row_sampling import less_uniform as less_uniform
from ._row_sampling import sample_rows as sample_rows
from ._scores import approximate_leverage_scores as approximate_leverage_scores
from ._scores import leverage_scores as leverage_scores
from ._sharded_rows import apply_sharded as apply_sharded
from ._sparse_columns import SparseColumns as SparseColumns
from ._sparse_rows import SparseRows as SparseRows
from ._sparse_stack import countsketch as countsketch
from ._sparse_stack import sparse_stack as sparse_stack
from ._srht import srht as srht
from ._svd import SVD as SVD
from ._svd import svd as svd
from ._tree import tree as tree
