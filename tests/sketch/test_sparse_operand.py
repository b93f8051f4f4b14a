"""`S @ A` of a BCOO matrix: the dense product, its padding, gradients and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

from jaxmethods import sketch
from jaxmethods.sketch import _operator, _sparse_operand
from jaxmethods.sketch._hadamard import _Transform
from jaxmethods.sketch._operator import matmul

from .families import FAMILIES

N, M = 37, 16


def dense(seed=0):
    r = np.random.default_rng(seed)
    A = r.integers(-9, 10, (N, 5)) * (r.random((N, 5)) < 0.3)
    return A.astype(np.float32)


def sparse(A, padding=0):
    """A BCOO matrix; the places of what pads it stand past the end."""
    places = np.pad(np.argwhere(A), ((0, padding), (0, 0)), constant_values=A.shape[0])
    values = np.concatenate([A[A != 0], np.full(padding, 7, A.dtype)])
    return BCOO((jnp.asarray(values), jnp.asarray(places, jnp.int32)), shape=A.shape)


def equal(family, got, want):
    close = 0 if FAMILIES[family].exact else 1e-5
    np.testing.assert_allclose(got, want, rtol=close, atol=10 * close)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several, and one that is not full."""
    _operator._apply_sparse.clear_cache()  # of programs with other tiles
    monkeypatch.setattr(_sparse_operand, "_TILE", 7 * M)
    monkeypatch.setattr(_sparse_operand, "_ROOM", 2 * M * 5)
    yield
    _operator._apply_sparse.clear_cache()


@pytest.mark.parametrize("family", FAMILIES)
def test_product_is_that_of_the_dense_matrix(family, small_tiles):
    S = FAMILIES[family].new(jax.random.key(0), M, N)
    A = dense()
    padded = sparse(A, padding=80 - np.count_nonzero(A))

    @jax.jit
    def products(S, A):
        part = S.columns(11, 19) @ sparse_rows(A, 11, 19)
        return S.dense(), S @ A, part, S @ A[:, :0]

    D, got, part, none = map(np.asarray, products(S, padded))
    equal(family, got, D @ A)
    equal(family, part, D[:, 11:30] @ A[11:30])
    assert got.dtype == np.float32 and none.shape == (M, 0)


def sparse_rows(A, start, size):
    """Some rows of A, the others' numbers past the end."""
    row = A.indices[:, :1] - start
    row = jnp.where((row < 0) | (row >= size), size, row)
    places = jnp.concatenate([row, A.indices[:, 1:]], axis=1)
    return BCOO((A.data, places), shape=(size, A.shape[1]))


@pytest.mark.parametrize("family", ["sparse_stack", "gaussian", "srht", "less"])
def test_gradient_in_the_stored_numbers(family, small_tiles):
    S, A = FAMILIES[family].new(jax.random.key(1), M, N), dense(1)
    places = np.argwhere(A)

    def loss(data, S):
        return ((S @ BCOO((data, places), shape=A.shape)) ** 2).sum() / 2

    run = jax.jit(lambda data, S: (jax.grad(loss)(data, S), S.T @ (S @ A)))
    got, want = run(A[A != 0], S)
    want = np.asarray(want)[tuple(places.T)]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_indices_of_a_type_that_does_not_hold_n():
    dense = np.random.default_rng(5).standard_normal((256, 2)).astype(np.float32)
    A = sparse(dense)
    short = BCOO((A.data, A.indices.astype(jnp.uint8)), shape=A.shape)
    S = sketch.gaussian(jax.random.key(6), 4, 256)
    np.testing.assert_array_equal(S @ short, S @ A)
    rows = sketch.SparseRows(
        jnp.array([[0, 5], [100, 7]], jnp.uint8), jnp.ones((2, 2)), 256
    )
    np.testing.assert_allclose(rows @ short, rows @ dense, rtol=1e-6)


def test_no_stored_number():
    A = BCOO((jnp.zeros(0), jnp.zeros((0, 2), int)), shape=(N, 5))
    for family in ("sparse_stack", "gaussian", "srht", "less"):
        S = FAMILIES[family].new(jax.random.key(2), M, N)
        np.testing.assert_array_equal(S @ A, np.zeros((M, 5)))


def test_products_and_transposes():
    outer = sketch.gaussian(jax.random.key(3), 4, M)
    S, A = sketch.sparse_stack(jax.random.key(4), M, N), dense(2)
    SA = S @ A
    np.testing.assert_array_equal((outer @ S) @ sparse(A), outer @ SA)
    np.testing.assert_array_equal(S.T.T @ sparse(A), SA)
    np.testing.assert_array_equal(S.T @ sparse(np.asarray(SA)), S.T @ SA)


def test_a_vector():
    S, A = sketch.sparse_stack(jax.random.key(4), M, N), dense(3)
    places = np.flatnonzero(A[:, 0])
    vector = BCOO((A[places, 0], jnp.asarray(places[:, None])), shape=(N,))
    got = jax.jit(lambda S, vector: S @ vector)(S, vector)
    np.testing.assert_array_equal(got, S @ A[:, 0])
    np.testing.assert_array_equal(S @ vector, got)
    with pytest.raises(ValueError, match=r"shape \(37, 1\); wanted 16 rows"):
        S.T @ vector


def test_low_precision_is_summed_in_float32():
    A = sparse(np.ones((4096, 1), jnp.bfloat16))
    S = sketch.SparseColumns(jnp.zeros((1, 4096), int), jnp.ones((1, 4096)), 1)
    assert float((S @ A)[0, 0]) == 4096 and (S @ A).dtype == jnp.bfloat16


def test_errors():
    S, A = sketch.countsketch(jax.random.key(0), M, N), sparse(dense())
    with pytest.raises(ValueError, match=r"shape \(37, 5\); wanted 30 rows"):
        sketch.countsketch(jax.random.key(0), M, 30) @ A
    with pytest.raises(NotImplementedError, match=r"BCSR of .*n_batch.*A.todense"):
        S @ BCSR.from_bcoo(A)
    with pytest.raises(NotImplementedError, match="n_dense = 0"):
        S @ BCOO((jnp.ones((N, 5)), jnp.arange(N)[:, None]), shape=(N, 5))
    with pytest.raises(TypeError, match=r"A.data is int32.*floating"):
        S @ BCOO((A.data.astype(int), A.indices), shape=A.shape)
    with pytest.raises(NotImplementedError, match=r"_Transform.*apply_sparse.*todense"):
        matmul(_Transform(N), A)
