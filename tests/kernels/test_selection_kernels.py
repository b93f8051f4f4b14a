"""Masks as words, the places of their bits, magnitudes by rank: against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.kernels import (
    _set_bits,
    magnitude_of_rank,
    pack_bits,
    set_places,
    unpack_bits,
)

SIZES = [1, 31, 32, 33, 1000, 5001]  # the last beyond what is handled as small


def mask(size, share):
    return np.random.default_rng(size).random(size) < share


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_bits_and_their_places(size, share):
    given = mask(size, share)
    words = pack_bits(jnp.asarray(given))
    bytes_ = np.packbits(given, bitorder="little")
    want = np.pad(bytes_, (0, -bytes_.size % 4)).view(np.uint32)
    np.testing.assert_array_equal(words, want)
    np.testing.assert_array_equal(unpack_bits(words, size), given)
    places = np.flatnonzero(given)
    for capacity in {1, max(len(places), 1), size + 3}:
        got = np.asarray(set_places(words, capacity))
        met = min(capacity, len(places))
        np.testing.assert_array_equal(got[:met], places[:met])
        assert (got[met:] == 32 * words.size).all()


def test_both_ways_to_pack_agree(monkeypatch):
    given = jnp.asarray(mask(500, 0.3))
    short = pack_bits(given)
    monkeypatch.setattr(_set_bits, "_SMALL", 0)
    np.testing.assert_array_equal(pack_bits(given), short)


def test_no_words():
    assert pack_bits(jnp.zeros(0, bool)).shape == (0,)
    assert set_places(jnp.zeros(0, jnp.uint32), 2).tolist() == [0, 0]


@pytest.mark.parametrize("size", [1, 33, 5001])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_magnitudes_by_rank(size, dtype):
    x = jax.random.normal(jax.random.key(size), (size,)).astype(dtype)
    x = x.at[: size // 2].multiply(1e-3).at[size // 3].set(0)
    down = np.sort(np.abs(np.asarray(x, np.float32)))[::-1]
    find = jax.jit(magnitude_of_rank)
    for rank in (0, size // 2, size - 1):
        got = find(x, rank)
        assert got.dtype == dtype and float(got) == down[rank]


@pytest.mark.usefixtures("x64")
def test_magnitudes_of_doubles_and_of_ties():
    x = np.random.default_rng(0).standard_normal(5000)
    assert float(magnitude_of_rank(jnp.asarray(x), 77)) == np.sort(abs(x))[-78]
    ties = jnp.asarray(np.float32([2, -2, 2, 1] * 1500))
    assert [float(magnitude_of_rank(ties, k)) for k in (0, 4499, 4500)] == [2, 2, 1]
    rows = jnp.stack([ties, 3 * ties])
    found = jax.vmap(magnitude_of_rank)(rows, jnp.array([0, 4500]))
    assert found.tolist() == [2, 3]
