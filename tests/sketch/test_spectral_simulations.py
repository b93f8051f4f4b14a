"""Theory holds on data: within the confidence intervals of simulations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.sketch import spectral

FUNCTIONS = {"binarize": spectral.binarize(0.43), "uniform": spectral.uniform(0.4)}
gram = jax.jit(spectral.transformed_gram)


@functools.partial(jax.jit, static_argnums=(1, 2))
def data(seed, p, n, snr):
    """Two classes +-mu with |mu|^2 = snr in normal noise, and their labels."""
    of_labels, of_mean, of_noise = jax.random.split(jax.random.key(seed), 3)
    labels = jnp.where(jax.random.permutation(of_labels, n) < n // 2, -1.0, 1.0)
    mean = jax.random.normal(of_mean, (p, 1))
    mean = mean * jnp.sqrt(snr) / jnp.linalg.norm(mean)
    return jax.random.normal(of_noise, (p, n)) + mean * labels[None, :], labels


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def simulate(f, snr, p, n, draws):
    """Eigenvalue, alignment and error of draws: (draws, 3)."""

    def one(seed):
        x, labels = data(seed, p, n, snr)
        key = jax.random.fold_in(jax.random.key(7), seed)
        got = spectral.clustering(key, x, f, num_steps=40)
        wrong = (got.labels != labels).mean()
        alignment = (got.eigenvector @ labels) ** 2 / n
        return jnp.stack([got.eigenvalue, alignment, jnp.minimum(wrong, 1 - wrong)])

    return jax.lax.map(one, jnp.arange(draws))


def simulated(f, snr, p=128, draws=24):
    """Means over draws at c = 1 / 4, and their standard errors."""
    got = np.asarray(simulate(f, jnp.float32(snr), p, 4 * p, draws), np.float64)
    return got.mean(0), got.std(0, ddof=1) / math.sqrt(draws)


def theory(f, snr):
    return np.array(spectral.predict(f.moments, c=0.25, snr=snr)[1:])


@pytest.mark.parametrize("snr", [1.2, 3.0])
def test_theory_is_within_the_confidence_interval_of_simulations(snr):
    f = spectral.linear()
    (mean, error), want = simulated(f, snr), theory(f, snr)
    assert (4 * error < 0.05 * np.array([want[0], 1, 1])).all(), "the interval can tell"
    assert (np.abs(mean - want) < 4 * error).all(), (mean, want, error)


@pytest.mark.parametrize("name", ["binarize", "uniform"])
def test_so_it_is_for_other_functions_as_the_size_grows(name):
    # A function that is not linear sees the means at any finite size, by the square of
    # snr / sqrt p: from two sizes the limit is extrapolated.
    f, snr = FUNCTIONS[name], 1.2
    (small, error), (large, of_large) = (simulated(f, snr, p) for p in (32, 128))
    limit, error = (4 * large - small) / 3, np.hypot(4 * of_large, error) / 3
    want = theory(f, snr)
    assert (4 * error < 0.07 * np.array([want[0], 1, 1])).all(), "the interval can tell"
    assert (np.abs(limit - want) < 4 * error).all(), (limit, want, error)


def test_nothing_is_seen_below_the_transition():
    f = spectral.uniform(0.4)
    transition = float(spectral.predict(f.moments, c=0.25, snr=1.0).transition)
    below, above = (simulated(f, v * transition)[0] for v in (0.4, 2.0))
    assert below[1] < 0.03 and below[2] > 0.42
    assert above[1] > 0.3 and above[2] < 0.25


def test_the_bulk_and_the_spurious_eigenvalue_of_simulations():
    n = 1200
    x = data(0, 300, n, 1e-9)[0]
    values = np.linalg.eigvalsh(gram(x, spectral.binarize(0.43)))
    m = spectral.binarize(0.43).moments
    ends = np.array(spectral.edges(m, c=0.25))
    np.testing.assert_allclose(values[[0, -1]], ends, rtol=0.05)
    z = np.linspace(*ends, 400)
    share = np.cumsum(spectral.density(z, m, c=0.25))
    assert np.abs(np.searchsorted(values, z) / n - share / share[-1]).max() < 0.02
    lowest = spectral.spurious(spectral.relu().moments, c=0.25, kurtosis=3.0)[0]
    got = np.linalg.eigvalsh(gram(x, spectral.relu()))[0]
    np.testing.assert_allclose(got, lowest, rtol=0.05)
    left = float(spectral.edges(spectral.relu().moments, c=0.25)[0])
    assert lowest < 1.1 * left
    assert np.linalg.eigvalsh(gram(jnp.sign(x), spectral.relu()))[0] > 1.05 * left
