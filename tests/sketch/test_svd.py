"""Randomised singular values: optimal error, orthonormal factors, the certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import sketch

jitted = jax.jit(sketch.svd, static_argnums=2)
DECAYS = {"slow": lambda j: 1 / j, "fast": lambda j: 2.0**-j}


def run(key, A, k):
    return jax.tree.map(np.asarray, jitted(key, A, k))


def basis(r, n, k):
    return np.linalg.qr(r.randn(n, k))[0]


def with_spectrum(n, d, spectrum, seed=0):
    r = np.random.RandomState(seed)
    rank = len(spectrum)
    return (basis(r, n, rank) * spectrum) @ basis(r, d, rank).T


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [(80, 40), (40, 80)])
def test_error_is_nearly_that_of_the_best_rank(decay, shape):
    k, spectrum = 5, DECAYS[decay](np.arange(40) + 1.0)
    A = with_spectrum(*shape, spectrum)
    U, s, Vt = run(jax.random.key(0), A, k)
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(k), atol=1e-12)
    assert (np.diff(s) <= 0).all()
    assert (s <= spectrum[:k] * (1 + 1e-12)).all()
    np.testing.assert_allclose(s, spectrum[:k], rtol=1e-2)
    left = A - (U * s) @ Vt
    best = np.linalg.norm(spectrum[k:])
    assert np.linalg.norm(left) < 1.02 * best
    # Documented: no probe is needed for this norm.
    exact = np.sqrt((A**2).sum() - (s**2).sum())
    np.testing.assert_allclose(np.linalg.norm(left), exact, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_iterations_sharpen_the_result():
    spectrum = (np.arange(60) + 1.0) ** -0.5
    A = with_spectrum(120, 60, spectrum)
    lost = [
        spectrum[:5].sum()
        - np.mean(
            [
                np.sum(
                    sketch.svd(
                        jax.random.key(i), A, 5, oversample=0, num_iterations=q
                    ).s
                )
                for i in range(3)
            ]
        )
        for q in (0, 1, 6)
    ]
    assert lost[1] < lost[0] / 2 and 0 < lost[2] < lost[1] / 2


def test_float32_keeps_small_singular_values():
    """Powers of A without normalisation would lose all below 1e-7 ^ (1 / 9)."""
    spectrum = 10.0 ** -np.arange(5)
    A = jnp.float32(with_spectrum(60, 30, spectrum))
    U, s, Vt = run(jax.random.key(0), A, 4)
    assert U.dtype == s.dtype == Vt.dtype == jnp.float32
    np.testing.assert_allclose(s, spectrum[:4], rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_low_rank_is_exact_and_the_whole_rank_is_allowed():
    A = with_spectrum(20, 8, np.array([3.0, 1.0]))
    for k in (3, 8):
        U, s, Vt = run(jax.random.key(0), A, k)
        np.testing.assert_allclose((U * s) @ Vt, A, atol=1e-13)
        np.testing.assert_allclose(s, [3, 1] + [0] * (k - 2), atol=1e-13)
    U, s, Vt = run(jax.random.key(0), jnp.zeros((6, 4)), 2)
    np.testing.assert_array_equal(s, 0)
    np.testing.assert_allclose(U.T @ U, np.eye(2), atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradient_of_the_sum_of_leading_values():
    A = jnp.asarray(with_spectrum(12, 6, 3.0 ** -np.arange(6)))
    key = jax.random.key(0)
    grad = jax.jit(jax.grad(lambda A: sketch.svd(key, A, 3).s.sum()))(A)
    U, _, Vt = np.linalg.svd(A, full_matrices=False)
    np.testing.assert_allclose(grad, U[:, :3] @ Vt[:3], atol=1e-5)


def test_batches_over_keys_and_matrices():
    spectrum = 2.0 ** -np.arange(6)
    As = jnp.stack([jnp.float32(with_spectrum(12, 6, spectrum, i)) for i in (0, 1)])
    keys = jax.random.split(jax.random.key(0), 2)
    many = jax.jit(jax.vmap(lambda key, A: sketch.svd(key, A, 2)))(keys, As)
    for i, key in enumerate(jax.random.split(jax.random.key(0), 2)):
        one = run(key, As[i], 2)
        np.testing.assert_allclose(many.s[i], one.s, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_certificate_holds_and_is_not_idle():
    spectrum = 1 / (np.arange(30) + 1.0)
    A = with_spectrum(60, 30, spectrum)
    factors = run(jax.random.key(0), A, 6)
    left = np.linalg.norm(A - (factors.U * factors.s) @ factors.Vt, 2)
    bound = jax.jit(sketch.error_bound)
    for seed in range(5):
        certified = bound(jax.random.key(10 + seed), A, factors)
        assert left <= certified < 8 * left
    # Wrong factors cannot pass.
    wrong = factors._replace(s=factors.s + 1)
    assert bound(jax.random.key(20), A, wrong) > 0.99


def test_certificate_fails_as_rarely_as_it_says():
    """With two probes and one direction, P(2 sqrt(2 / pi) max |g| < 1) is exact."""
    A, factors = jnp.eye(1), (jnp.zeros((1, 1)), jnp.zeros(1), jnp.zeros((1, 1)))
    keys = jax.random.split(jax.random.key(0), 4000)
    bound = jax.vmap(lambda key: sketch.error_bound(key, A, factors, num_probes=2))
    failed = float((bound(keys) < 1).mean())
    # (P(|g| < sqrt(pi / 8)))^2 = erf(sqrt(pi) / 4)^2 = 0.2193
    assert abs(failed - 0.2193) < 5 * (0.2193 * 0.7807 / 4000) ** 0.5
    assert failed < 2**-2


def test_errors():
    key, A = jax.random.key(0), jnp.ones((16, 3))
    for bad in (0, 4):
        with pytest.raises(ValueError, match=rf"k is {bad}; wanted 1..3"):
            sketch.svd(key, A, bad)
    with pytest.raises(ValueError, match=r"oversample is -1"):
        sketch.svd(key, A, 2, oversample=-1)
    with pytest.raises(ValueError, match=r"num_iterations is -1"):
        sketch.svd(key, A, 2, num_iterations=-1)
    with pytest.raises(ValueError, match=r"not finite.*drop or fill"):
        sketch.svd(key, A.at[3, 1].set(jnp.nan), 2)
    with pytest.raises(ValueError, match=r"wanted a matrix"):
        sketch.svd(key, A[0], 1)
    with pytest.raises(TypeError, match=r"int32.*astype"):
        sketch.svd(key, A.astype(int), 1)
    with pytest.raises(TypeError, match=r"wanted a Python int"):
        sketch.svd(key, A, 1.0)
    U, s, Vt = jnp.ones((16, 2)), jnp.ones(2), jnp.ones((2, 3))
    for factors in ((U, s), (U, s, Vt.T), (U[:3], s, Vt), (U,)):
        with pytest.raises(ValueError, match=r"factors have shapes.*\(16, k\)"):
            sketch.error_bound(key, A, factors)
    with pytest.raises(ValueError, match=r"num_probes is 0"):
        sketch.error_bound(key, A, (U, s, Vt), num_probes=0)
