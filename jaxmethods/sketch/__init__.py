"""A smaller matrix with the same answer: random projections as linear operators.

`countsketch` and `sparse_stack` draw operators from a key; `SparseColumns` is one whose
entries are given. All are pytrees S with `S @ A`, `S.T @ Y`, `S1 @ S2`, `S.shape`,
`S.dense()`, `S.columns(start, size)` (what a shard of the rows of A applies before one
psum) and `S.debias(d)` (the scalar that multiplies inv((S A)^T S A)).

`spectral` is the theory of what zeroing and quantizing the entries of a kernel matrix
costs, and clustering with what is left.
"""

from . import spectral as spectral
from ._operator import LinearOperator as LinearOperator
from ._sparse_columns import SparseColumns as SparseColumns
from ._sparse_stack import countsketch as countsketch
from ._sparse_stack import sparse_stack as sparse_stack
