"""Counter-based random bits: known answers, place independence, uniformity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.kernels import random_bits, threefry_2x32

N = 1 << 16
words = jax.jit(random_bits, static_argnums=2)


def counters(n=N):
    return jnp.arange(n, dtype=jnp.uint32)


# (key, counter, answer), from the generator's published test vectors
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN)
def test_threefry_known_answers(key, counter, answer):
    key, counter = (tuple(map(jnp.uint32, pair)) for pair in (key, counter))
    assert tuple(map(int, threefry_2x32(key, *counter))) == answer


def test_a_word_depends_on_its_own_counter_only():
    key = jax.random.key(3)
    whole = np.asarray(words(key, counters(), 5))
    np.testing.assert_array_equal(words(key, counters()[77:99], 5), whole[77:99])
    square = random_bits(key, counters(64).reshape(8, 8), 5)
    np.testing.assert_array_equal(np.ravel(square), whole[:64])
    assert int(random_bits(key, jnp.uint32(12), 5)) == whole[12]


def test_streams_broadcast_against_counters():
    key, stream = jax.random.key(3), jnp.arange(3, dtype=jnp.uint32)[:, None]
    both = random_bits(key, counters(10)[None, :], stream)
    assert both.shape == (3, 10) and both.dtype == jnp.uint32
    for i in range(3):
        np.testing.assert_array_equal(both[i], random_bits(key, counters(10), i))


def test_vmap_over_keys_is_a_stream_for_each():
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.vmap(lambda key: random_bits(key, counters(8)))(keys)
    for key, row in zip(keys, many, strict=True):
        np.testing.assert_array_equal(random_bits(key, counters(8)), row)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_implementation(impl):
    keys = [jax.random.key(seed, impl=impl) for seed in (1, 2)]
    keys += list(jax.random.split(jax.random.key(3, impl=impl), 2))
    first = [int(random_bits(key, jnp.uint32(0))) for key in keys]
    assert len(set(first)) == len(keys)


@pytest.mark.parametrize("seed", [0, 1])
def test_words_are_uniform(seed):
    u = np.sort(np.asarray(words(jax.random.key(seed), counters()), np.float64)) / 2**32
    distance = np.abs(u - (np.arange(N) + 0.5) / N).max()
    assert distance < 1.95 / np.sqrt(N)  # Kolmogorov-Smirnov at level 0.001
    counts = np.bincount((u * 256).astype(int), minlength=256)
    chi_square = ((counts - N / 256) ** 2 / (N / 256)).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


def bits(key, stream=0, shift=0):
    """±1 for each of the 32 bits of each word: (N, 32)."""
    word = np.asarray(words(key, counters() + jnp.uint32(shift), stream))
    return 1.0 - 2.0 * ((word[:, None] >> np.arange(32, dtype=np.uint32)) & 1)


@pytest.mark.parametrize(
    "other",
    [
        dict(seed=0, shift=1),
        dict(seed=0, shift=N),
        dict(seed=0, stream=1),
        dict(seed=1),
    ],
    ids=["next counter", "counter far away", "next stream", "next key"],
)
def test_all_bits_are_fair_and_no_pair_is_correlated(other):
    own = bits(jax.random.key(0))
    also = bits(jax.random.key(other.pop("seed")), **other)
    limit = 5.5 / np.sqrt(N)  # of 2 * 1024 near-normal averages
    assert np.abs(own.mean(0)).max() < limit
    assert np.abs(own.T @ also / N).max() < limit
    assert np.abs(own.T @ own / N - np.eye(32)).max() < limit


def test_words_repeat_as_often_as_chance_has_it():
    n = 1 << 18  # a permutation of the counters would give no pair; here n^2 / 2^33 = 8
    drawn = np.asarray(words(jax.random.key(7), counters(n)))
    assert 1 <= n - len(np.unique(drawn)) <= 20


def test_errors():
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=r"int32\[4\].*astype\(jnp.uint32\)"):
        random_bits(key, jnp.arange(4))
    with pytest.raises(TypeError, match=r"stream is float32\[4\]"):
        random_bits(key, counters(4), jnp.ones(4))
    with pytest.raises(TypeError, match="typed key"):
        random_bits(jnp.zeros(2, jnp.uint32), counters(4))
    with pytest.raises(ValueError, match=r"batch of keys.*jax.vmap"):
        random_bits(jax.random.split(key, 2), counters(4))
