"""Two clusters from the top eigenvector of a transformed Gram matrix."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core import check_integer, check_key, describe, vary_as
from ...kernels import random_bits
from ._entrywise import Entrywise
from ._gram import EntryFunction, check_samples, gram_rows
from ._lanczos import top_eigenpair

# Where the matrix fits, storing it is faster: twice at p = 2, ten times at p = 512 (two
# CPU cores, n = 4096, 20 steps).
_STORED_BYTES = 2**30
_BLOCK = 256  # rows of the matrix at a time


class Clustering(NamedTuple):
    """Two clusters, and the eigenvector that they are the signs of.

    Attributes:
        labels: int32 (n,), -1 or 1; which cluster is which is arbitrary.
        eigenvalue: scalar, the largest.
        eigenvector: (n,), of norm 1.
    """

    labels: jax.Array
    eigenvalue: jax.Array
    eigenvector: jax.Array


def clustering(
    key: jax.Array,
    x: Any,
    f: EntryFunction,
    *,
    num_steps: int = 50,
    stored: bool | None = None,
    axis_name: str | None = None,
) -> Clustering:
    """Clusters samples by the signs of the top eigenvector of f(x^T x / sqrt p).

    The diagonal is left out, as in `transformed_gram`, which says what x should be
    like; `predict` says how many labels will be wrong. The eigenvector is that of the
    largest eigenvalue, not of the largest in absolute value (Lanczos' method).

    Args:
        key: scalar typed key: of the first vector, and of the mask of `uniform`, which
            is symmetric and the same in every step.
        x: floating (p, n), n samples of p features as columns.
        f: an `Entrywise` or any elementwise function.
        num_steps: products with the matrix; more where an eigenvalue has barely left
            the bulk.
        stored: whether to store the matrix; else blocks of its rows are computed
            again in every step. None: up to a GiB (for each device).
        axis_name: inside `shard_map`, the mesh axis over which the samples are split.
            x is then gathered; the matrix, its rows split like x, never is. What is
            returned is that of the device's samples, and independent of the mesh.

    Returns:
        `Clustering`, its numbers in the dtype of x, float32 or wider.

    Raises:
        TypeError: x is not floating, key no typed key, or stored neither bool nor
            None.
        ValueError: x is no matrix, or num_steps is below 1.

    Complexity:
        Stored: 2 p n^2 flops, then n^2 numbers read each step. Else 2 p n^2 flops each
        step, and 256 n numbers of memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.sketch import spectral
        >>> labels = jnp.where(jnp.arange(60) < 30, -1, 1)
        >>> noise = jax.random.normal(jax.random.key(0), (20, 60))
        >>> x = noise + labels[None, :]  # the means are -1 and 1
        >>> found = spectral.clustering(jax.random.key(1), x, spectral.binarize(0.43))
        >>> abs(int((found.labels * labels).sum()))
        60

    References:
        Liao, Couillet, Mahoney 2020, Sparse quantized spectral clustering (arXiv
        2010.01376).
    """
    check_key(key)
    x = check_samples(x)
    num_steps = check_integer(num_steps, "num_steps", 1)
    if stored not in (True, False, None):
        raise TypeError(f"stored is {describe(stored)}; wanted True, False or None.")
    # Jitted where f is known again, or its loops were compiled anew at every call.
    known = isinstance(f, Entrywise | jax.tree_util.Partial)
    return (_cluster_jitted if known else _cluster)(
        key, x, f, num_steps=num_steps, stored=stored, axis_name=axis_name
    )


def _cluster(
    key: jax.Array,
    x: jax.Array,
    f: EntryFunction,
    *,
    num_steps: int,
    stored: bool | None,
    axis_name: str | None,
) -> Clustering:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    first, every = _gather(x, axis_name)
    start_key, mask_key = jax.random.split(key)
    here = first + jnp.arange(x.shape[1], dtype=jnp.uint32)
    if stored is None:
        stored = x.shape[1] * every.shape[1] * x.dtype.itemsize <= _STORED_BYTES
    multiply = _multiplier(x, here, every, f, mask_key, stored)

    def matvec(v: jax.Array) -> jax.Array:
        whole = v if axis_name is None else lax.all_gather(v, axis_name, tiled=True)
        return multiply(whole)

    signs = random_bits(start_key, here) >> 31
    start = vary_as(1 - 2 * signs.astype(x.dtype), jax.typeof(x))
    num_steps = min(num_steps, every.shape[1])
    value, vector = top_eigenpair(matvec, start, num_steps, axis_name)
    return Clustering(jnp.where(vector < 0, -1, 1), value, vector)


_cluster_jitted = jax.jit(
    _cluster, static_argnames=("num_steps", "stored", "axis_name")
)


def _gather(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """The number of the device's first sample, uint32, and all samples."""
    if axis_name is None:
        return jnp.uint32(0), x
    first = lax.axis_index(axis_name).astype(jnp.uint32) * jnp.uint32(x.shape[1])
    return first, lax.all_gather(x, axis_name, axis=1, tiled=True)


def _multiplier(
    x: jax.Array,
    here: jax.Array,
    every: jax.Array,
    f: EntryFunction,
    key: jax.Array,
    stored: bool,
) -> Callable[[jax.Array], jax.Array]:
    """(n,) -> the rows of x of the product with the matrix."""
    n = every.shape[1]
    size = min(_BLOCK, x.shape[1])
    missing = -x.shape[1] % size
    blocks = jnp.pad(x, ((0, 0), (0, missing))).reshape(len(x), -1, size)
    blocks = blocks.swapaxes(0, 1), jnp.pad(here, (0, missing)).reshape(-1, size)
    column = jnp.arange(n, dtype=jnp.uint32)

    def over_blocks(use: Callable[[jax.Array], jax.Array]) -> jax.Array:
        def one(block: tuple[jax.Array, jax.Array]) -> jax.Array:
            left, row = block
            return use(gram_rows(left, every, row, column, f, key))

        out = lax.map(one, blocks)
        return out.reshape(-1, *out.shape[2:])[: x.shape[1]]

    if not stored:
        return lambda v: over_blocks(lambda rows: rows @ v)
    matrix = over_blocks(lambda rows: rows)
    return lambda v: matrix @ v
