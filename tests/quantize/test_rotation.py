"""The rotation of columns behind `bhq(hadamard=True)`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.quantize._rotation import rotate_columns


@pytest.mark.parametrize("d", [1, 6, 64, 199])
def test_it_is_orthogonal_and_inverted(d):
    rotation = np.asarray(rotate_columns(jnp.eye(d)))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(d), atol=1e-6)
    x = jax.random.normal(jax.random.key(0), (3, d))
    back = rotate_columns(rotate_columns(x), inverse=True)
    np.testing.assert_allclose(back, x, atol=1e-6)


def test_a_spike_is_spread_over_its_block():
    got = np.abs(rotate_columns(jnp.eye(128)[70:71]))
    np.testing.assert_allclose(got[0], np.repeat([0, 1 / 8], 64), atol=1e-7)


def test_a_constant_row_is_not_gathered_into_one_entry():
    got = np.abs(rotate_columns(jnp.ones((1, 256))))
    assert got.max() < 4
