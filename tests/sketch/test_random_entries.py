"""Dense sketches: their laws, tiles and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from jaxmethods.kernels import (
    _random_matmul,
    random_matmul,
    random_matmul_transpose,
)
from jaxmethods.sketch import gaussian, rademacher


def test_gaussian_entries_are_normal_and_independent():
    m, n = 50, 400
    D = np.asarray(gaussian(jax.random.key(0), m, n).dense(), np.float64) * m**0.5
    assert kstest(D.ravel(), "norm").pvalue > 1e-4
    assert np.abs(D).max() < 6
    for other in (np.roll(D, 1, 0), np.roll(D, 1, 1)):
        assert abs((D * other).mean()) < 5 / np.sqrt(m * n)


def test_rademacher_entries_are_signs_and_independent():
    m, n = 100, 400  # 32 rows have a word of their own
    D = np.asarray(rademacher(jax.random.key(0), m, n).dense(), np.float64) * m**0.5
    np.testing.assert_allclose(np.abs(D), 1, rtol=1e-6)
    rows = D @ D.T / n - np.eye(m)
    assert np.abs(rows).max() < 6 / np.sqrt(n) and abs(D.mean()) < 5 / np.sqrt(m * n)


@pytest.mark.parametrize("law", ["normal", "sign"])
def test_tiles_do_not_change_the_product(law, monkeypatch):
    key, start, n, m = jax.random.key(2), jnp.uint32(7), 103, 8
    A = np.float32(np.random.default_rng(1).standard_normal((n, 2)))
    monkeypatch.setattr(_random_matmul, "_TILE", 16 * m)  # the last tile is short

    @jax.jit
    def run(key, A):
        R = _random_matmul.random_tile(key, start, m, n, law)
        forward = random_matmul(key, start, A, num_rows=m, law=law)
        back = random_matmul_transpose(key, start, A[:m], num_columns=n, law=law)
        return R.astype(jnp.float32), forward, back

    R, forward, back = map(np.asarray, run(key, A))
    np.testing.assert_allclose(forward, R @ A, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back, R.T @ A[:m], rtol=1e-5, atol=1e-5)


@pytest.mark.optimized
@pytest.mark.parametrize("new", [gaussian, rademacher])
def test_memory_is_some_tiles(new):
    n, m, d = 1 << 16, 256, 8
    A = jax.ShapeDtypeStruct((n, d), jnp.float32)
    run = jax.jit(lambda key, A: new(key, m, n) @ A)
    used = run.lower(jax.random.key(0), A).compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * 4 * _random_matmul._TILE  # S takes 32 times it
