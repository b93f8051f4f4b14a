"""`S @ A` of a BCOO matrix: the dense product, its padding, gradients and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

from jaxmethods import sketch

from .families import FAMILIES

N, M = 37, 16
STACKS = ["countsketch", "BlockRoll", "sparse_stack", "SparseColumns"]


def sparse(seed=0, **options):
    r = np.random.default_rng(seed)
    A = r.integers(-9, 10, (N, 5)) * (r.random((N, 5)) < 0.3)
    return BCOO.fromdense(jnp.asarray(A, jnp.float32), **options)


@pytest.mark.parametrize("family", STACKS)
def test_product_is_that_of_the_dense_matrix(family):
    S = FAMILIES[family].new(jax.random.key(0), M, N)
    A = sparse(nse=80)  # more than there are: the rest is padding past the end
    got = jax.jit(lambda S, A: S @ A)(S, A)
    np.testing.assert_array_equal(got, S @ A.todense())
    assert got.dtype == jnp.float32


def test_gradient_in_the_stored_numbers():
    S, A = sketch.sparse_stack(jax.random.key(1), M, N), sparse(1)

    def loss(data):
        return ((S @ BCOO((data, A.indices), shape=A.shape)) ** 2).sum() / 2

    got = jax.jit(jax.grad(loss))(A.data)
    want = S.T @ (S @ A.todense())
    np.testing.assert_allclose(got, want[tuple(A.indices.T)], atol=1e-4)


def test_low_precision_is_summed_in_float32():
    A = BCOO.fromdense(jnp.ones((4096, 1), jnp.bfloat16))
    S = sketch.SparseColumns(jnp.zeros((1, 4096), int), jnp.ones((1, 4096)), 1)
    assert float((S @ A)[0, 0]) == 4096 and (S @ A).dtype == jnp.bfloat16


def test_errors():
    S, A = sketch.countsketch(jax.random.key(0), M, N), sparse()
    with pytest.raises(ValueError, match=r"shape \(37, 5\); wanted 30 rows"):
        sketch.countsketch(jax.random.key(0), M, 30) @ A
    with pytest.raises(NotImplementedError, match=r"BCSR .*n_batch.*A.todense"):
        S @ BCSR.from_bcoo(A)
    with pytest.raises(NotImplementedError, match="n_dense = 0"):
        S @ sparse(n_dense=1)
    with pytest.raises(TypeError, match=r"A.data is int32.*floating"):
        S @ BCOO((A.data.astype(int), A.indices), shape=A.shape)
    for other in (sketch.gaussian(jax.random.key(0), M, N), S.T):
        with pytest.raises(NotImplementedError, match=r"sparse BCOO.*sparse_stack"):
            other @ A
