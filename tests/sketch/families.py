"""The table of sketching families: a new one is a line here."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods import sketch


class Family(NamedTuple):
    """A constructor `new(key, m, n)` and what is expected of the family.

    Attributes:
        new: (key, m, n) -> operator.
        scalar: (m, N, d) -> the debiasing scalar, N the next power of two of n; or
            the hint of the error where there is none.
        exact: whether the entries are powers of two where m is 16, so that sums with
            whole numbers have no rounding.
        distinct: whether the rows are drawn without replacement, at most N of them.
    """

    new: Callable
    scalar: Callable | str
    exact: bool = True
    distinct: bool = False


def independent(m, N, d):
    return (m - d) / m


def wishart(m, N, d):
    return (m - d - 1) / m


def orthogonal(m, N, d):
    return N * (m - d - 1) / (m * (N - d - 1))


@partial(jax.jit, static_argnums=(1, 2))
def explicit_stack(key, m, n):
    return sketch.sparse_stack(key, m, n).explicit()


@partial(jax.jit, static_argnums=(1, 2))
def block_roll(key, m, n):
    whole = sketch.countsketch(key, m, n).explicit()
    return sketch.BlockRoll(whole.sign[0], whole.bucket[0, ::m], m)


@partial(jax.jit, static_argnums=(1, 2))
def hadamard(key, m, n):
    whole = sketch.srht(key, m, n).explicit()
    return sketch.Hadamard(whole.sign, whole.rows, n)


def whole_numbers(seed, *shape):
    """Operands whose sums with entries +-1 or +-1/2 are exact in any order."""
    draw = np.random.default_rng(seed).integers(-9, 10, shape)
    return jnp.asarray(draw, jnp.float32)


def uneven(n):
    """Positive scores that spread by a factor of 8, and do not sum to one."""
    return 8 ** jax.random.uniform(jax.random.key(5), (n,))


@partial(jax.jit, static_argnums=(1, 2))
def sample_rows(key, m, n):
    return sketch.sample_rows(key, uneven(n), m)


@partial(jax.jit, static_argnums=(1, 2))
def less(key, m, n):
    return sketch.less(key, uneven(n), m, s=3)


def less_uniform(key, m, n):
    return sketch.less_uniform(key, m, n, s=3)


COUNTSKETCH = r"countsketch .*k = 1.* use sparse_stack"
FAMILIES = {
    "countsketch": Family(sketch.countsketch, COUNTSKETCH),
    "BlockRoll": Family(block_roll, COUNTSKETCH),
    "sparse_stack": Family(sketch.sparse_stack, independent),
    "SparseColumns": Family(explicit_stack, independent),
    "gaussian": Family(sketch.gaussian, wishart, exact=False),
    "rademacher": Family(sketch.rademacher, independent),
    "srht": Family(sketch.srht, orthogonal, distinct=True),
    "Hadamard": Family(hadamard, orthogonal, distinct=True),
    "sample_rows": Family(sample_rows, r"s = 1.* use less", exact=False),
    "less": Family(less, independent, exact=False),
    "less_uniform": Family(less_uniform, independent, exact=False),
}
