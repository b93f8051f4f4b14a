"""Chunked maps and sums equal plain ones, whatever the remainder, and stay small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.influence import _chunks

N = 13
EXAMPLES = {"x": jnp.arange(2.0 * N).reshape(N, 2), "y": jnp.arange(N)}


def rows(some):
    """Four numbers an example, and the greatest number of examples it was given."""
    SEEN.append(len(some["y"]))
    z = some["x"] * some["y"][:, None]
    return {"z": z, "sum": z.sum(1)}


SEEN = []


@pytest.mark.parametrize("most", [1, 3, 4, 5, 12, 13, 100])
def test_map_is_what_one_call_returns(most, monkeypatch):
    monkeypatch.setattr(_chunks, "BUDGET", most)
    SEEN.clear()
    got = _chunks.map_chunks(rows, EXAMPLES, 1)
    assert max(SEEN) <= most
    jax.tree.map(np.testing.assert_array_equal, got, rows(EXAMPLES))


@pytest.mark.parametrize("most", [1, 3, 4, 5, 12, 13, 100])
def test_sum_is_what_one_call_returns(most, monkeypatch):
    weights = jnp.linspace(-1, 2, N)

    def weighted(some, weights):
        return {"total": weights @ some["x"], "first": weights.sum()}

    both = (EXAMPLES, weights)
    each = _chunks._numbers_per_example(lambda some: weighted(*some), both)
    monkeypatch.setattr(_chunks, "BUDGET", most * max(each, 1))
    got = _chunks.sum_chunks(weighted, EXAMPLES, weights)
    want = weighted(EXAMPLES, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)
    assert got["total"].shape == (2,)


def test_the_numbers_of_an_example_are_counted_through_calls():
    def fn(x):
        return jnp.sum(jax.jit(lambda x: jnp.sin(x) * 2)(x), 1)

    # sin and product: 6 each inside the call, 6 that it returns, and one sum.
    assert _chunks._numbers_per_example(fn, jnp.ones((5, 6))) == 19
    weight = jnp.ones((6, 4000))
    shared = _chunks._numbers_per_example(lambda x: x @ (2 * weight), jnp.ones((5, 6)))
    assert shared == 4000


def test_counting_examples():
    assert _chunks.count_examples(EXAMPLES, "train") == N
    assert _chunks.count_examples(jnp.ones((0, 2)), "test", empty=True) == 0
    with pytest.raises(ValueError, match=r"train has leaves of shapes .*one leading"):
        _chunks.count_examples((jnp.ones(2), jnp.ones(3)), "train")
    with pytest.raises(ValueError, match="train has no examples"):
        _chunks.count_examples(jnp.ones((0, 2)), "train")
