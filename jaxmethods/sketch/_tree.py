"""A sketch of a pytree, as of one long vector, without making that vector."""

from typing import Any

import jax
import jax.numpy as jnp

from ..core import check_floating
from ._operator import SlicedOperator


def tree(S: SlicedOperator, pytree: Any) -> jax.Array:
    """`S @ x` for the vector x of all entries of a pytree, leaf after leaf.

    Linear in the pytree, so the sketch of a sum of gradients is the sum of their
    sketches: inside `shard_map` or `pmap`, one psum of m numbers. `S.T @ y` is the
    unbiased estimate of the vector x; `jax.flatten_util.ravel_pytree` says how to
    unravel it.

    Args:
        S: operator (m, n) that has `columns`.
        pytree: floating leaves of any shape, n entries in all.

    Returns:
        (m,), in the dtype that the leaves promote to.

    Raises:
        TypeError: a leaf is not floating.
        ValueError: the leaves do not hold n entries.

    Complexity:
        Of `S @ x`; each leaf is read where it lies.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.sketch import sparse_stack
        >>> params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
        >>> S = sparse_stack(jax.random.key(0), 8, 16)
        >>> tree(S, params).shape
        (8,)

    References:
        Rothchild et al. 2020, FetchSGD: communication-efficient federated learning
        with sketching (arXiv 2007.07682).
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(pytree)
    leaves = [
        check_floating(leaf, f"the leaf {jax.tree_util.keystr(path) or 'of the tree'}")
        for path, leaf in paths
    ]
    rows, columns = S.shape
    held = sum(leaf.size for leaf in leaves)
    if held != columns:
        raise ValueError(
            f"the pytree holds {held} numbers in {len(leaves)} leaves; wanted "
            f"{columns}, as many as this {rows} x {columns} operator has columns."
        )
    dtype = jnp.result_type(*leaves)
    total, start = jnp.zeros(rows, dtype), 0
    for leaf in leaves:
        if leaf.size:
            part = S.columns(start, leaf.size)
            total = total + part @ leaf.reshape(-1).astype(dtype)
            start += leaf.size
    return total
