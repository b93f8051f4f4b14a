"""Sums of rows by bucket: every implementation against its definition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods.kernels import (
    _block_roll,
    _bucket_sum,
    block_roll,
    block_roll_transpose,
    bucket_sum,
    rolled_buckets,
)

K, SIZE, WIDTH = 3, 5, 2
roll = jax.jit(block_roll, static_argnames="size")
roll_back = jax.jit(block_roll_transpose)
ROLLS = {
    "default": block_roll,
    "in place": _block_roll._add_in_place,
    "gathered": _block_roll._sum_gathered,
}
SUMS = {
    "default": bucket_sum,
    "in place": _bucket_sum._add_in_place,
    "one-hot": _bucket_sum._one_hot_products,
}


def draw(seed, n):
    """Rows, signs and offsets of whole numbers: all sums are exact."""
    r = np.random.default_rng(seed)
    rows = r.integers(-9, 10, (n, WIDTH)).astype(np.float32)
    sign = r.choice([-1, 1], (K, n)).astype(np.int8)
    offset = r.integers(0, SIZE, (K, (n + 2 * SIZE - 2) // SIZE)).astype(np.int32)
    return rows, sign, offset


def definition(rows, bucket, sign):
    out = np.zeros((K, SIZE, rows.shape[1]))
    for j in range(K):
        np.add.at(out[j], bucket[j], sign[j][:, None] * rows.astype(np.float64))
    return out


def rolled(offset, phase, n):
    position = phase + np.arange(n)
    return (position + offset[:, position // SIZE]) % SIZE


@pytest.mark.parametrize("n", [1, 4, 5, 10, 23])
@pytest.mark.parametrize("implementation", ROLLS)
def test_block_roll_is_its_definition_at_every_phase(implementation, n):
    rows, sign, offset = draw(0, n)
    roll = jax.jit(ROLLS[implementation], static_argnames="size")
    for phase in range(SIZE):
        want = definition(rows, rolled(offset, phase, n), sign)
        got = roll(rows, sign, offset, jnp.int32(phase), size=SIZE)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("n", [1, 4, 23])
@pytest.mark.parametrize("implementation", SUMS)
def test_bucket_sum_is_its_definition(implementation, n, monkeypatch):
    monkeypatch.setattr(_bucket_sum, "_CHUNK", 8)
    rows, sign, _ = draw(1, n)
    bucket = np.random.default_rng(2).integers(0, SIZE, (K, n))
    got = SUMS[implementation](*map(jnp.asarray, (rows, bucket, sign)), size=SIZE)
    np.testing.assert_array_equal(got, definition(rows, bucket, sign))


@given(seed=st.integers(0, 2**31), phase=st.integers(0, SIZE - 1))
@settings(max_examples=25, deadline=None)
def test_block_roll_transpose_is_the_adjoint(seed, phase):
    rows, sign, offset = draw(seed, 17)
    sums = np.random.default_rng(seed).integers(-9, 10, (K, SIZE, WIDTH))
    sums = sums.astype(np.float32)
    forward = roll(rows, sign, offset, phase, size=SIZE)
    back = roll_back(sums, sign, offset, phase)
    assert float((forward * sums).sum()) == float((rows * back).sum())


def test_rolled_buckets_are_where_the_rows_go():
    _, _, offset = draw(3, 23)
    got = rolled_buckets(offset, 2, 23, size=SIZE)
    np.testing.assert_array_equal(got, rolled(offset, 2, 23))


@pytest.mark.parametrize("implementation", ROLLS)
def test_a_nan_stays_in_its_bucket(implementation):
    rows, sign, offset = draw(4, 23)
    rows[11, 1] = np.nan
    got = ROLLS[implementation](*map(jnp.asarray, (rows, sign, offset)), 3, size=SIZE)
    hit = np.isnan(np.asarray(got))
    assert hit.sum() == K
    bucket = rolled(offset, 3, 23)[:, 11]
    assert hit[np.arange(K), bucket, 1].all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_adds_in_float32(dtype):
    n = 4096  # bfloat16 would stop counting at 256, float16 at 2048
    ones, sign = jnp.ones((n, 1), dtype), jnp.ones((1, n), jnp.int8)
    offset = jnp.zeros((1, n), jnp.int32)
    rolled_sum = block_roll(ones, sign, offset, 0, size=1)
    bucket = bucket_sum(ones, jnp.zeros((1, n), jnp.int32), sign, size=1)
    assert rolled_sum.dtype == bucket.dtype == jnp.float32
    assert float(rolled_sum[0, 0, 0]) == float(bucket[0, 0, 0]) == n
