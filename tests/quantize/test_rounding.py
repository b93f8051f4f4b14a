"""The noise itself, and rounding by chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.quantize import _rounding

row_column_bits = jax.jit(_rounding.row_column_bits, static_argnums=1)
round_levels = jax.jit(_rounding.round_levels, static_argnums=2)

SHAPE = (256, 1024)


def uniforms(seed, shape=SHAPE):
    bits = row_column_bits(jax.random.key(seed), shape)
    return np.asarray(bits >> 8, np.float64) * 2.0**-24


def test_noise_is_uniform():
    counts = np.histogram(uniforms(0), bins=256, range=(0, 1))[0]
    expected = SHAPE[0] * SHAPE[1] / 256
    # chi-square of 255 degrees: mean 255, deviation 23.
    assert 140 < ((counts - expected) ** 2 / expected).sum() < 370


def test_every_upper_bit_is_fair():
    bits = np.asarray(row_column_bits(jax.random.key(1), SHAPE))
    for place in range(8, 32):
        ones = ((bits >> place) & 1).mean()
        assert abs(ones - 0.5) < 6 * 0.5 / np.sqrt(bits.size)


@pytest.mark.parametrize(
    "pair",
    [
        lambda u: (u[:, 1:], u[:, :-1]),
        lambda u: (u[1:], u[:-1]),
        lambda u: (u[:, 2:], u[:, :-2]),
        lambda u: (u[1:, 1:], u[:-1, :-1]),
        lambda u: (u[:, 512:], u[:, :512]),
        lambda u: (u, uniforms(3)),
    ],
    ids=["columns", "rows", "second columns", "diagonals", "far columns", "keys"],
)
def test_neighbours_are_independent(pair):
    a, b = (u.ravel() for u in pair(uniforms(2)))
    table = np.histogram2d(a, b, bins=16, range=[[0, 1], [0, 1]])[0]
    expected = a.size / 256
    # chi-square of 255 degrees: mean 255, deviation 23.
    assert 140 < ((table - expected) ** 2 / expected).sum() < 370


def test_a_larger_matrix_repeats_the_smaller():
    small, large = (row_column_bits(jax.random.key(4), s) for s in ((3, 5), (7, 9)))
    np.testing.assert_array_equal(large[:3, :5], small)


@pytest.mark.parametrize("fraction", [2.0**-12, 0.3, 0.5, 1 - 2.0**-12])
def test_the_chance_of_going_up_is_the_fraction(fraction):
    levels = jnp.full((512, 512), 7 + jnp.float32(fraction))
    got = np.asarray(round_levels(jax.random.key(5), levels, 15))
    assert set(np.unique(got)) <= {7.0, 8.0}
    deviation = np.sqrt(fraction * (1 - fraction) / got.size)
    assert abs((got == 8).mean() - fraction) < 6 * deviation


def test_whole_levels_never_move():
    levels = jnp.broadcast_to(jnp.arange(256.0), (4096, 256))
    np.testing.assert_array_equal(round_levels(jax.random.key(6), levels, 255), levels)


def test_levels_stay_on_the_grid():
    beyond = jnp.array([[-1e-5, 15.00001, jnp.nan]])
    for key in (None, jax.random.key(7)):
        got = round_levels(key, jnp.tile(beyond, (100, 1)), 15)
        np.testing.assert_array_equal(got[:, 0], jnp.zeros(100))
        np.testing.assert_array_equal(got[:, 1], jnp.full(100, 15.0))
        assert np.isnan(got[:, 2]).all()


def test_any_key_implementation_will_do():
    levels = jnp.full((64, 64), 0.5)
    for impl in ("threefry2x32", "rbg"):
        got = round_levels(jax.random.key(8, impl=impl), levels, 3)
        assert 0.4 < float(got.mean()) < 0.6
