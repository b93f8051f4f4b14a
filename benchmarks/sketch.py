"""Sketching operators beside scipy's sparse product and beside one read of A.

    python -m benchmarks sketch [--quick]

Every row is a product with a matrix of d = 100 float32 columns. `ours_s` draws the
operator from its key inside the timed call; the peer, scipy's csc product on one
thread, has its matrix built before. The floor is what memory allows: `A.sum()` for a
product that reads A, filling a new array for one that writes as much (new pages cost
jax more than numpy). Seconds are medians of wall time over interleaved rounds; `ratio`
is `ours_s / peer_s`.

Last result, n = 1e6, m = 1000, 2 cores of a Xeon that had other work, in ms:

    operation                 ours   peer   floor   temporaries
    S @ A, k = 1                36     46      27   1.8 MB
    S @ A, k = 4                73     75      26   4.8 MB
    S @ A, k = 8               134    119      28   8.8 MB
    S.T @ Y, k = 1             180     96     168
    S.T @ Y, k = 4             209    132     173
    given buckets, k = 1        67     46      26
    given buckets, k = 4       140     72      26
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jaxmethods.sketch import SparseColumns, countsketch, sparse_stack

from .harness import compare

_NUM_ROWS, _WIDTH = 1000, 100


def run(quick: bool) -> list[dict]:
    """The rows `{name, ours_s, peer_s, ratio, floor_s}` of this area."""
    n = 100_000 if quick else 1_000_000
    key = jax.random.key(0)
    A = jax.random.normal(jax.random.key(1), (n, _WIDTH))
    Y = jax.random.normal(jax.random.key(2), (_NUM_ROWS, _WIDTH))
    rows = []
    for k in (1, 4, 8):
        S = draw(key, n, k)
        rows.append(forward_row(f"draw and S @ A, k = {k}", draw_and_apply(n, k), S, A))
        rows.append(transpose_row(f"draw and S.T @ Y, k = {k}", S, Y, n, k))
    for k in (1, 4):
        S = draw(key, n, k)
        given = jax.jit(lambda S, A: S @ A)
        name = f"given buckets, S @ A, k = {k}"
        rows.append(forward_row(name, given, S, A, first=S.explicit()))
    return rows


def draw(key: jax.Array, n: int, k: int):
    if k == 1:
        return countsketch(key, _NUM_ROWS, n)
    return sparse_stack(key, _NUM_ROWS, n, k=k)


def draw_and_apply(n: int, k: int) -> Callable:
    return jax.jit(lambda key, A: draw(key, n, k) @ A)


def forward_row(name: str, ours: Callable, S, A: jax.Array, first=None) -> dict:
    first = S.key if first is None else first
    csc, host = as_scipy(S.explicit()), np.asarray(A)
    np.testing.assert_allclose(ours(first, A), csc @ host, rtol=1e-3, atol=1e-2)
    read = jax.jit(jnp.sum)
    return compare(
        name,
        ours=lambda: ours(first, A),
        peer=lambda: csc @ host,
        floor=lambda: read(A),
    )


def transpose_row(name: str, S, Y: jax.Array, n: int, k: int) -> dict:
    csr, host = as_scipy(S.explicit()).T, np.asarray(Y)
    ours = jax.jit(lambda key, Y: draw(key, n, k).T @ Y)
    np.testing.assert_allclose(ours(S.key, Y), csr @ host, rtol=1e-3, atol=1e-3)
    fill = jax.jit(lambda value: jnp.full((n, _WIDTH), value))
    one = jnp.float32(1)
    return compare(
        name,
        ours=lambda: ours(S.key, Y),
        peer=lambda: csr @ host,
        floor=lambda: fill(one),
    )


def as_scipy(S: SparseColumns) -> scipy.sparse.csc_matrix:
    k, n = S.bucket.shape
    block = np.arange(k)[:, None] * (S.num_rows // k)
    index = (np.asarray(S.bucket) + block).T.ravel().astype(np.int32)
    value = (np.asarray(S.sign, np.float32) / np.sqrt(k)).astype(np.float32).T.ravel()
    pointer = np.arange(0, k * n + 1, k, dtype=np.int32)
    return scipy.sparse.csc_matrix((value, index, pointer), shape=S.shape)
