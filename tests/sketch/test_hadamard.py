"""The Hadamard transform and the sketches of its rows: matrices, goldens, samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from scipy.stats import chi2

from jaxmethods.kernels import _walsh_hadamard
from jaxmethods.sketch import Hadamard, srht, walsh_hadamard
from jaxmethods.sketch._distinct import distinct_rows

from .families import whole_numbers

IMPLEMENTATIONS = {
    "by blocks": _walsh_hadamard._by_blocks,
    "all at once": _walsh_hadamard._all_at_once,
}


@pytest.mark.parametrize("length", [1, 2, 64, 512])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_transform_is_sylvesters_matrix(implementation, length):
    xs = [np.asarray(whole_numbers(0, length, width)) for width in (1, 3, 70)]
    transform = IMPLEMENTATIONS[implementation]
    got = jax.jit(lambda xs: [transform(x) for x in xs])(xs)
    for one, x in zip(got, xs, strict=True):
        np.testing.assert_array_equal(one, hadamard(length) @ x)


@pytest.mark.parametrize("width", [1, 64])
def test_blocks_within_blocks(width, monkeypatch):
    monkeypatch.setattr(_walsh_hadamard, "_BLOCK", 4)  # bytes: nothing fits
    x = whole_numbers(0, 1 << 13, width)  # 64 blocks of 128, each 64 blocks of 2
    got = jax.jit(_walsh_hadamard._by_blocks)(x)
    np.testing.assert_array_equal(got, jax.jit(_walsh_hadamard._all_at_once)(x))


@pytest.mark.optimized
def test_memory_beside_the_result_is_a_block():
    x = jax.ShapeDtypeStruct((1 << 16, 64), jnp.float32)
    used = jax.jit(walsh_hadamard).lower(x).compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * _walsh_hadamard._BLOCK  # x has 16 of them


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(platform):
    x = jax.ShapeDtypeStruct((1 << 12, 64), jnp.float32)
    module = jax.export.export(jax.jit(walsh_hadamard), platforms=[platform])(x)
    assert "while" not in module.mlir_module()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_transform_of_the_transform(seed):
    x = np.asarray(whole_numbers(seed, 32, 2, 3))
    once, twice, flat = transforms(x)
    np.testing.assert_array_equal(twice, 32 * x)
    np.testing.assert_array_equal(flat, once[:, 1, 2])


@jax.jit
def transforms(x):
    once = walsh_hadamard(x)
    return once, walsh_hadamard(once), walsh_hadamard(x[:, 1, 2])


def test_derivatives_batches_and_dtypes():
    H, x = hadamard(8).astype(np.float32), jnp.asarray(whole_numbers(0, 8))
    batch = np.stack([x, 2 * x], 1)

    @jax.jit
    def run(x, batch):
        both = jax.jacrev(walsh_hadamard)(x), jax.jacfwd(walsh_hadamard)(x)
        return *both, jax.vmap(walsh_hadamard, 1, 1)(batch)

    back, forward, many = run(x, batch)
    np.testing.assert_array_equal(back, H)
    np.testing.assert_array_equal(forward, H)
    np.testing.assert_array_equal(many, H @ batch)
    assert walsh_hadamard(jnp.ones((8, 0))).shape == (8, 0)
    ones = walsh_hadamard(jnp.ones((4096, 1), jnp.bfloat16))  # bfloat16 stops at 256
    assert ones.dtype == jnp.bfloat16 and float(ones[0, 0]) == 4096


def test_goldens(shared, x64):
    with np.load(shared / "goldens" / "06-less-embeddings.npz") as file:
        g = dict(file)
    size = np.abs(g["fwht_out"]).max()
    got = walsh_hadamard(jnp.asarray(g["fwht_in"]))
    np.testing.assert_allclose(got, g["fwht_out"], atol=1e-11 * size)
    S = Hadamard(jnp.asarray(g["srht_sign"]), jnp.asarray(g["srht_rows"]), len(g["A"]))
    np.testing.assert_allclose(S @ g["A"], g["srht_SA"], atol=1e-11 * size)


def test_rows_are_orthogonal_and_of_equal_entries():
    D = np.asarray(srht(jax.random.key(0), 16, 64).dense())
    np.testing.assert_array_equal(np.abs(D), np.full((16, 64), 0.25))
    np.testing.assert_array_equal(D @ D.T, 4 * np.eye(16))


@pytest.mark.parametrize("length", [1, 2, 256])
def test_all_distinct_rows_are_a_permutation(length):
    @jax.jit
    def draw(key):
        keys = jax.random.split(key, 5)
        all_rows = jax.vmap(lambda key: distinct_rows(key, length, length))(keys)
        return all_rows, distinct_rows(keys[0], -(-length // 3), length)

    rows, few = map(np.asarray, draw(jax.random.key(0)))
    np.testing.assert_array_equal(np.sort(rows, 1), np.tile(np.arange(length), (5, 1)))
    np.testing.assert_array_equal(few, rows[0, : len(few)])


def test_pairs_of_distinct_rows_are_equally_likely():
    num, length = 20_000, 8
    keys = jax.random.split(jax.random.key(1), num)
    rows = jax.jit(jax.vmap(lambda key: distinct_rows(key, 2, length)))(keys)
    count = np.bincount(np.asarray(rows) @ [length, 1], minlength=length**2)
    count = count.reshape(length, length)
    assert (np.diag(count) == 0).all()
    want = num / (length * (length - 1))
    statistic = ((count[~np.eye(length, dtype=bool)] - want) ** 2 / want).sum()
    assert statistic < chi2.ppf(1 - 1e-6, length * (length - 1) - 1)


def test_columns_past_a_block_and_within():
    n = 100  # 128 padded; windows in one block of 16 and across two
    S = srht(jax.random.key(2), 16, n)
    D, part = np.asarray(S.dense()), jax.jit(lambda S, i: S.columns(i, 13).dense())
    for start in (0, 3, 4, 16, 87):
        np.testing.assert_array_equal(part(S, start), D[:, start : start + 13])


def test_errors():
    for length in (12, 0):
        with pytest.raises(ValueError, match=rf"float32\[{length},2\].*power of two"):
            walsh_hadamard(jnp.ones((length, 2)))
    with pytest.raises(ValueError, match=r"float32\[\].*pad it"):
        walsh_hadamard(jnp.float32(1))
    with pytest.raises(TypeError, match=r"int32\[4\]; wanted a floating"):
        walsh_hadamard(jnp.ones(4, int))
    with pytest.raises(ValueError, match="m is 17 and n 15, 16 when padded"):
        srht(jax.random.key(0), 17, 15)
    with pytest.raises(ValueError, match=r"sign is float32\[3\].*each of 4 columns"):
        Hadamard(jnp.ones(3), jnp.arange(2), 4) @ jnp.ones(4)
    with pytest.raises(ValueError, match=r"rows int32\[1,2\].*a vector"):
        Hadamard(jnp.ones(4), jnp.arange(2)[None], 4).dense()
