"""Radii of words: closed forms for linear models, no attack within, order kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound

T, D = 4, 3
X = jax.random.normal(jax.random.key(0), (T, D))
A = jax.random.normal(jax.random.key(1), (2, T, D))
V = jax.random.normal(jax.random.key(2), (D, D)) / 2


def linear(x):
    return jnp.einsum("std,td->s", A, x)


def attention(x):
    mixed = jax.nn.softmax(x @ V @ x.T, -1) @ x
    return jnp.einsum("std,td->s", A, jnp.tanh(x + mixed))


LABEL = int(jnp.argmax(linear(X)))
PAIRS = [(0, 1), (0, 3), (2, 1)]


@pytest.mark.parametrize("p, dual", [(jnp.inf, 1), (2, 2), (1, np.inf)])
def test_a_linear_model_has_exact_radii_for_words_and_pairs(p, dual):
    gap = float(jnp.abs(jnp.diff(linear(X))[0]))
    norms = np.linalg.norm(np.asarray(A[0] - A[1]), dual, axis=1)
    got = bound.word_radius(linear, X, LABEL, p=p)
    np.testing.assert_allclose(got.radius, gap / norms, rtol=1.1e-3)
    assert (got.radius <= gap / norms * (1 + 1e-6)).all()
    np.testing.assert_array_equal(got.ranking, np.argsort(-norms))
    pairs = bound.word_radius(linear, X, LABEL, jnp.array(PAIRS), p=p)
    want = [gap / (norms[i] + norms[j]) for i, j in PAIRS]
    np.testing.assert_allclose(pairs.radius, want, rtol=1.1e-3)


def test_no_word_within_its_radius_changes_the_label():
    label = int(jnp.argmax(attention(X)))
    got = bound.word_radius(attention, X, label, p=2, method="crown_ibp")
    assert (got.radius > 0).all()
    for place in range(T):
        d = jax.random.normal(jax.random.key(place), (500, D))
        d = d / jnp.linalg.norm(d, axis=1, keepdims=True) * got.radius[place]
        moved = jnp.broadcast_to(X, (500, T, D)).at[:, place].add(d)
        assert (jnp.argmax(jax.vmap(attention)(moved), 1) == label).all()


def test_sentences_and_positions_are_one_compiled_search():
    xs = jnp.stack([X, X[::-1], 2 * X])
    labels = jnp.array([LABEL, 0, 1])
    places = jnp.array([2, 0])
    run = jax.jit(jax.vmap(functools.partial(bound.word_radius, linear), (0, 0, None)))
    got = run(xs, labels, places)
    assert got.radius.shape == got.ranking.shape == (3, 2)
    for x, y, r in zip(xs, labels, got.radius, strict=True):
        want = bound.word_radius(linear, x, int(y), places, method="ibp")
        np.testing.assert_allclose(r, want.radius, rtol=2e-3)
    wrong = bound.word_radius(linear, X, 1 - LABEL)
    np.testing.assert_array_equal(wrong.radius, 0)


@pytest.mark.parametrize(
    "x, positions, options, error, hint",
    [
        (X, [4], {}, ValueError, r"positions holds 4 .* wanted 0\.\.3"),
        (X, [-1], {}, ValueError, "positions holds -1"),
        (X, [1, 1], {}, ValueError, "repeats one"),
        (X, [(1, 1)], {}, ValueError, "repeats one"),
        (X, [(0, 1), (1, 0)], {}, ValueError, "repeats one"),
        (X, [1.0], {}, TypeError, "positions .* wanted integers"),
        (X, [], {}, ValueError, "positions .* without entries.* None for all words"),
        (X, 1, {}, ValueError, r"wanted \(P,\) for single words"),
        (jnp.arange(4), None, {}, TypeError, "token ids .* embedding function"),
        (X[None], None, {}, ValueError, r"embeddings \(T, d\) of one sentence"),
        (X / 0, None, {}, ValueError, "NaN or infinity"),
        (X, None, {"p": 0.5}, ValueError, "p of a Ball is 0.5"),
        (X, None, {"method": "x"}, ValueError, "method is 'x'"),
    ],
)
def test_bad_arguments_are_refused(x, positions, options, error, hint):
    with pytest.raises(error, match=hint):
        bound.word_radius(linear, x, 0, positions, **options)
