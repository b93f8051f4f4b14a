"""Nystrom approximations: below K, near the best rank, certified."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import sketch

jitted = jax.jit(sketch.nystrom, static_argnums=2)


def run(key, K, k):
    return jax.tree.map(np.asarray, jitted(key, K, k))


def semidefinite(spectrum, seed=0):
    n = len(spectrum)
    Q = np.linalg.qr(np.random.RandomState(seed).randn(n, n))[0]
    return (Q * spectrum) @ Q.T


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay", [lambda j: j**-2, lambda j: 2.0**-j])
def test_below_the_matrix_and_near_the_best_rank(decay):
    k, spectrum = 6, decay(np.arange(50) + 1.0)
    K = semidefinite(spectrum)
    U, s = run(jax.random.key(0), K, k)
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=1e-12)
    assert (s >= 0).all() and (np.diff(s) <= 0).all()
    assert (s <= spectrum[:k] * (1 + 1e-10)).all()
    left = K - (U * s) @ U.T
    assert np.linalg.eigvalsh(left)[0] > -1e-12
    best = spectrum[k:].sum()
    assert np.trace(left) < 1.02 * best
    np.testing.assert_allclose(np.trace(left), np.trace(K) - s.sum(), rtol=1e-9)
    bound = sketch.error_bound(jax.random.key(1), K, (U, s))
    size = np.linalg.norm(left, 2)
    assert size <= bound < 8 * size


@pytest.mark.usefixtures("x64")
def test_the_formula():
    """Without iterations, against the pseudo-inverse of the definition."""
    K, key = semidefinite(1 / (np.arange(9) + 1.0)), jax.random.key(0)
    got = sketch.nystrom(key, K, 3, oversample=0, num_iterations=0)
    U, s = map(np.asarray, got)
    W = np.asarray(jax.random.normal(jax.random.key(0), (9, 3)))
    want = K @ W @ np.linalg.pinv(W.T @ K @ W) @ W.T @ K
    np.testing.assert_allclose((U * s) @ U.T, want, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_rank_is_exact(dtype):
    K = jnp.outer(jnp.ones(20), jnp.ones(20)).astype(dtype)
    U, s = run(jax.random.key(0), K, 4)
    assert U.dtype == s.dtype == K.dtype
    np.testing.assert_allclose(np.float32(s), [20, 0, 0, 0], rtol=1e-2, atol=1e-5)
    back = (np.float32(U) * np.float32(s)) @ np.float32(U).T
    np.testing.assert_allclose(back, 1, rtol=2e-2 if dtype == "bfloat16" else 1e-5)


def test_zero_matrix_and_the_whole_rank():
    U, s = run(jax.random.key(0), jnp.zeros((5, 5)), 5)
    np.testing.assert_array_equal(s, 0)
    assert np.isfinite(U).all()


def test_batches_over_keys_and_matrices():
    Ks = jnp.stack([jnp.float32(semidefinite(2.0 ** -np.arange(8), i)) for i in (0, 1)])
    keys = jax.random.split(jax.random.key(0), 2)
    many = jax.jit(jax.vmap(lambda key, K: sketch.nystrom(key, K, 2)))(keys, Ks)
    np.testing.assert_allclose(many.s, [[1, 0.5], [1, 0.5]], rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_gradient_of_the_sum_of_leading_values():
    K = jnp.asarray(semidefinite(9.0 ** -np.arange(5)))
    key = jax.random.key(0)
    total = lambda K: sketch.nystrom(key, K, 2, num_iterations=6).s.sum()  # noqa: E731
    grad = jax.jit(jax.grad(total))(K)
    _, vector = np.linalg.eigh(K)
    want = vector[:, -2:] @ vector[:, -2:].T
    np.testing.assert_allclose((grad + grad.T) / 2, want, atol=1e-5)


def test_errors():
    key, K = jax.random.key(0), jnp.eye(6)
    with pytest.raises(ValueError, match=r"\(6, 3\).*square.*take svd"):
        sketch.nystrom(key, K[:, :3], 2)
    for bad in (0, 7):
        with pytest.raises(ValueError, match=rf"k is {bad}; wanted 1..6"):
            sketch.nystrom(key, K, bad)
    with pytest.raises(ValueError, match=r"not finite.*drop or fill"):
        sketch.nystrom(key, K.at[2, 2].set(jnp.inf), 2)
    with pytest.raises(ValueError, match=r"semidefinite.*multiple of the identity"):
        sketch.nystrom(jax.random.key(1), K.at[0, 0].set(-1.0), 2)
    with pytest.raises(ValueError, match=r"apart.*symmetric"):
        sketch.nystrom(jax.random.key(2), K.at[0, 1].set(1.0), 2)
    with pytest.raises(TypeError, match=r"int32.*astype"):
        sketch.nystrom(key, K.astype(int), 2)
