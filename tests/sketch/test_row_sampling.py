"""Row samples and LESS: draws, weights, goldens, and the scores they start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from scipy.stats import chi2

from jaxmethods.sketch import (
    SparseRows,
    less,
    less_uniform,
    sample_rows,
)
from jaxmethods.sketch._drawing import draw_indices

from .derivatives import check_derivatives

jitted_less = jax.jit(less, static_argnames=("m", "s"))  # one program of many


@pytest.fixture
def golden(shared):
    with np.load(shared / "goldens" / "06-less-embeddings.npz") as file:
        return dict(file)


def test_draws_follow_the_scores_through_every_level():
    n, num = 70_000, 1 << 17  # three levels of 256
    scores = np.random.default_rng(0).random(n).astype(np.float32)
    scores[::3] = 0
    scores[12_345] = 3000  # some 8 % of all
    index = np.asarray(draw_indices(jax.random.key(0), jnp.asarray(scores), (num,)))
    assert (scores[index] > 0).all()
    p = scores.astype(np.float64) / scores.astype(np.float64).sum()
    heavy = (index == 12_345).mean()
    assert abs(heavy - p[12_345]) < 5 * np.sqrt(p[12_345] / num)
    groups = np.arange(n) % 97
    want = num * np.bincount(groups, p)
    count = np.bincount(groups[index], minlength=97)
    assert ((count - want) ** 2 / want).sum() < chi2.ppf(1 - 1e-6, 96)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_the_scores_does_not_matter(scale):
    scores = jnp.array([0.0, 1.0, 2.0, 0.0, 5.0])
    want = jitted_less(jax.random.key(0), scores, m=8, s=2)
    got = jitted_less(jax.random.key(0), scale * scores, m=8, s=2)
    np.testing.assert_array_equal(got.index, want.index)
    np.testing.assert_allclose(got.weight, want.weight, rtol=1e-5)


def test_weights_are_those_of_the_probabilities():
    p, leverage = np.array([1, 2, 5]) / 8, np.array([0.5, 0.25, 1.0])

    @jax.jit
    def draw(key, scores, leverage):
        return (
            less(key, scores, 50, s=4),
            less_uniform(key, 50, 3, s=4),
            sample_rows(key, scores, 50, leverage=leverage),
        )

    S, even, alone = jax.tree.map(np.asarray, draw(jax.random.key(1), 8 * p, leverage))
    np.testing.assert_allclose(abs(S.weight), (200 * p[S.index]) ** -0.5, rtol=1e-5)
    assert 60 < (S.weight > 0).sum() < 140
    np.testing.assert_allclose(abs(even.weight), (200 / 3) ** -0.5, rtol=1e-5)
    assert set(np.unique(even.index)) == {0, 1, 2}
    want = (50 * p - leverage) ** -0.5
    np.testing.assert_allclose(alone.weight, want[alone.index], rtol=1e-5)


def test_draws_by_default():
    ones = jnp.ones(5)
    for m, s in ((1, 1), (10, 3), (256, 64), (4000, 64)):
        new = jax.eval_shape(lambda key, m=m: less(key, ones, m), jax.random.key(0))
        assert new.index.shape == (m, s)


def test_golden_rows(golden, x64):
    g = golden
    index, (m, s) = g["less_idx"], g["less_idx"].shape
    weight = g["less_sign"] / np.sqrt(m * s * g["less_p"][index])
    S = SparseRows(jnp.asarray(index), jnp.asarray(weight), len(g["A"]))
    np.testing.assert_allclose(S @ g["A"], g["less_SA"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(S.T @ g["less_y"], g["less_STy"], rtol=1e-9, atol=1e-12)
    SA = np.asarray(S @ g["A"])
    inverse = S.debias(SA.shape[1]) * np.linalg.inv(SA.T @ SA)
    np.testing.assert_allclose(inverse, g["less_inv_debiased"], rtol=1e-7, atol=1e-12)


def test_a_nan_in_a_row_not_drawn_stays_out():
    A = jnp.ones((6, 2)).at[0].set(jnp.nan)
    S = SparseRows(jnp.array([[3, 5], [1, 2]]), jnp.ones((2, 2)), 6)
    np.testing.assert_array_equal(S @ A, 2 * np.ones((2, 2)))
    np.testing.assert_array_equal(S.columns(0, 3) @ A[:3], [[0, 0], [2, 2]])


@pytest.mark.parametrize("index_dtype", ["int8", "uint8", "int32"])
def test_any_index_that_names_no_column_is_no_entry_whatever_its_weight(index_dtype):
    n, none = 120, jnp.nan
    index = [[3, 120, 5], [127, 119, 0]]
    if index_dtype != "uint8":  # not the last column, as in python
        index[0][1] = -1
    index = np.array(index, index_dtype)
    weight = jnp.array([[2.0, none, 1.0], [none, 1.0, 3.0]])
    S = SparseRows(jnp.asarray(index), weight, n)
    A, y = np.arange(2.0 * n, dtype=np.float32).reshape(n, 2), jnp.array([1.0, 2.0])

    @jax.jit
    def products(S, A):
        window = S.columns(100, 20)
        return S @ A, S @ BCOO.fromdense(A, nse=2 * n), S.T @ y, window @ A[100:]

    dense, sparse, back, window = products(S, jnp.asarray(A))
    want = np.stack([2 * A[3] + A[5], A[119] + 3 * A[0]])
    np.testing.assert_array_equal(dense, want)
    np.testing.assert_array_equal(sparse, want)
    there = [0, 3, 5, 119]
    np.testing.assert_array_equal(back[jnp.array(there)], [6, 2, 1, 2])
    assert float(jnp.abs(back).sum()) == 11
    np.testing.assert_array_equal(window, np.stack([0 * A[0], A[119]]))


def test_derivatives_in_the_weights_and_the_scores(x64):
    index = jnp.array([[0, 2], [1, 1]])
    r = np.random.default_rng(0)
    A, weight = (jnp.asarray(r.standard_normal(shape)) for shape in ((3, 2), (2, 2)))
    product = lambda weight, A: SparseRows(index, weight, 3) @ A  # noqa: E731
    check_derivatives(product, (weight, A), rtol=1e-6)
    draw = lambda scores: less(jax.random.key(2), scores, 4, s=2) @ A  # noqa: E731
    check_derivatives(draw, (jnp.array([1.0, 2.0, 4.0]),), rtol=1e-6)


@pytest.mark.optimized
def test_memory_is_that_of_the_scores_and_the_draws():
    n, m, s, d = 1 << 16, 64, 16, 32
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n,), (n, d)))
    run = jax.jit(lambda key, scores, A: less(key, scores, m, s=s) @ A)
    used = run.lower(jax.random.key(0), *shapes).compile().memory_analysis()
    assert used.temp_size_in_bytes < 16 * n + 32 * m * s  # A takes 128 n bytes


def test_errors_of_scores():
    key, ok = jax.random.key(0), jnp.ones(16)
    for new in (sample_rows, less):
        for bad in (jnp.nan, -1.0, jnp.inf):
            with pytest.raises(ValueError, match=rf"scores\[3\] = {bad:g}.*clip them"):
                new(key, ok.at[3].set(bad), 8)
        with pytest.raises(ValueError, match=r"scores\[0\] = 0.*one of them positive"):
            new(key, 0 * ok, 8)
        with pytest.raises(
            ValueError, match=r"scores\[0\] = 9.9\d+e-41.*by a constant"
        ):
            new(key, np.full(16, 1e-40, np.float32), 8)
        with pytest.raises(ValueError, match=r"scores are float32\[16,1\].*a vector"):
            new(key, ok[:, None], 8)
        with pytest.raises(TypeError, match=r"int 8; .*before the rows m: .*less_unif"):
            new(key, 8, 16)
        with pytest.raises(ValueError, match="m is 0; wanted 1"):
            new(key, ok, 0)
    with pytest.raises(ValueError, match="s is 0; wanted at least 1"):
        less(key, ok, 8, s=0)
    with pytest.raises(ValueError, match="s is 0; wanted at least 1"):
        less_uniform(key, 8, 16, s=0)
    with pytest.raises(TypeError, match=r"m is float32\[16\].* less\(key, scores, m\)"):
        less_uniform(key, ok, 8, s=2)
    with pytest.raises(
        ValueError, match=r"leverage\[0\] is 0.9 .* 0.5 times in 8 draws"
    ):
        sample_rows(key, ok, 8, leverage=0.9 * ok)
    with pytest.raises(ValueError, match=r"leverage\[2\] is 0.1 .* 0 times"):
        sample_rows(key, ok.at[2].set(0), 8, leverage=0.1 * ok)
    with pytest.raises(ValueError, match=r"leverage is float32\[15\]"):
        sample_rows(key, ok, 8, leverage=ok[:15])
    with pytest.raises(ValueError, match=r"index is int32\[4\].*index\[:, None\]"):
        SparseRows(jnp.arange(4), jnp.ones(4), 8) @ jnp.ones(8)


def test_a_row_of_zeros_needs_no_leverage_above_rounding():
    leverage = jnp.array([1e-8, 0.5, 0.5])
    scores = jnp.array([0.0, 1.0, 1.0])
    S = sample_rows(jax.random.key(0), scores, 8, leverage=leverage)
    assert np.isfinite(S.weight).all()
    with pytest.raises(
        ValueError, match=r"leverage\[0\] is 0\.1 and row 0 is expected"
    ):
        sample_rows(jax.random.key(1), scores, 8, leverage=leverage.at[0].set(0.1))
