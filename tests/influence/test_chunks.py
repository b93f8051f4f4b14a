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


@pytest.mark.parametrize("most", [1, 3, 5, 13])
def test_stages_are_what_one_call_of_each_returns(most, monkeypatch):
    seen, taken = [], []

    def first(some):
        seen.append(len(some["y"]))
        return jnp.sin(some["x"][:, :1] * jnp.arange(50.0)[None]).sum(1)

    def second(found):
        taken.append(len(found))
        return jnp.stack([found, 2 * found], 1)

    each = _chunks.numbers_per_example(first, EXAMPLES)
    monkeypatch.setattr(_chunks, "BUDGET", most * each)
    got = _chunks.map_stages(first, second, EXAMPLES)
    np.testing.assert_allclose(got, second(first(EXAMPLES)), rtol=1e-6)
    assert min(seen) <= most
    assert max(taken[:-1]) >= min(N, 4 * most)


@pytest.mark.parametrize("most", [1, 3, 4, 5, 12, 13, 100])
def test_sum_is_what_one_call_returns(most, monkeypatch):
    weights = jnp.linspace(-1, 2, N)

    def weighted(some, weights):
        return {"total": weights @ some["x"], "first": weights.sum()}

    both = (EXAMPLES, weights)
    each = _chunks.numbers_per_example(lambda some: weighted(*some), both)
    monkeypatch.setattr(_chunks, "BUDGET", most * max(each, 1))
    got = _chunks.sum_chunks(weighted, EXAMPLES, weights)
    want = weighted(EXAMPLES, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)
    assert got["total"].shape == (2,)


@pytest.mark.parametrize("most", [1, 4, 5, 13, 100])
def test_fold_sees_each_example_once_in_order(most, monkeypatch):
    monkeypatch.setattr(_chunks, "BUDGET", most)
    examples = EXAMPLES | {"key": jax.random.split(jax.random.key(0), N)}

    def fold(seen, some, index):
        assert len(index) == len(some["y"]) <= most
        # An example is where its number says, and what fills up is the last one.
        right = (some["y"] == jnp.minimum(index, N - 1)).all()
        right &= (index[1:] > index[:-1]).all()
        return seen.at[index].add(jnp.where(right, 1, 100), mode="drop")

    got = _chunks.fold_chunks(fold, jnp.zeros(N, jnp.int32), examples, 1)
    assert got.tolist() == [1] * N


@pytest.mark.optimized
@pytest.mark.parametrize("n", [4096, 4099])
def test_the_examples_are_not_copied(n, monkeypatch):
    monkeypatch.setattr(_chunks, "BUDGET", 2**14)

    def sums(x):
        return _chunks.map_chunks(lambda some: jnp.sin(some).sum(1), x, 64)

    x = jax.ShapeDtypeStruct((n, 64), jnp.float32)
    used = jax.jit(sums).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert used < 0.2 * n * 64 * 4


def test_the_numbers_of_an_example_are_counted_through_calls():
    def fn(x):
        return jnp.sum(jax.jit(lambda x: jnp.sin(x) * 2)(x), 1)

    # sin and product: 6 each inside the call, 6 that it returns, and one sum.
    assert _chunks.numbers_per_example(fn, jnp.ones((5, 6))) == 19
    weight = jnp.ones((6, 4000))
    shared = _chunks.numbers_per_example(lambda x: x @ (2 * weight), jnp.ones((5, 6)))
    assert shared == 4000


def test_counting_examples():
    assert _chunks.count_examples(EXAMPLES, "train") == N
    assert _chunks.count_examples(jnp.ones((0, 2)), "test", empty=True) == 0
    with pytest.raises(ValueError, match=r"train has leaves of shapes .*one leading"):
        _chunks.count_examples((jnp.ones(2), jnp.ones(3)), "train")
    with pytest.raises(ValueError, match="train has no examples"):
        _chunks.count_examples(jnp.ones((0, 2)), "train")
