"""CountSketch and its stacks: entries, statistics, memory, goldens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.sketch import (
    BlockRoll,
    Hadamard,
    SparseColumns,
    countsketch,
    sparse_stack,
)

from .derivatives import check_derivatives


def test_countsketch_has_one_sign_a_column():
    D = np.asarray(countsketch(jax.random.key(5), 16, 300).dense())
    assert ((D != 0).sum(0) == 1).all() and (np.abs(D).max(0) == 1).all()
    assert abs(D.sum()) < 5 * np.sqrt(300)


@pytest.mark.parametrize("k", [2, 4, 40])  # 40 signs take two words a column
def test_stack_has_one_sign_a_column_in_each_block(k):
    m, n = 80, 300
    S = sparse_stack(jax.random.key(5), m, n, k=k)
    stack = np.asarray(S.dense()).reshape(k, m // k, n)
    assert ((stack != 0).sum(1) == 1).all()
    np.testing.assert_allclose(np.abs(stack).max(1), k**-0.5, rtol=1e-6)
    sign = np.sign(stack.sum(1))
    correlation = sign @ sign.T / n - np.eye(k)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(n)


def test_columns_collide_with_probability_one_in_the_rows_of_a_stack():
    k, size, num = 2, 4, 4000
    keys = jax.random.split(jax.random.key(0), num)
    drawn = jax.jit(jax.vmap(lambda key: sparse_stack(key, 8, 12, k=k).explicit()))
    bucket = np.asarray(drawn(keys).bucket)
    same = (bucket[..., :, None] == bucket[..., None, :]).mean(0)
    near = np.kron(np.eye(3), np.ones((size, size)))  # pairs of one block of columns
    want = np.where(near, np.eye(12), 1 / size)
    spread = np.sqrt(want * (1 - want) / num)
    assert (np.abs(same - want) <= 5.5 * spread).all()
    counts = np.stack([(bucket == b).mean(0) for b in range(size)])
    assert np.abs(counts - 1 / size).max() < 5.5 * np.sqrt(0.25 * 0.75 / num)


@pytest.mark.parametrize("devices", [2, 8])
def test_buckets_and_signs_do_not_depend_on_the_mesh(devices):
    n, key = 56, jax.random.key(1)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("rows",))

    def local(key):
        size = n // devices
        start = jax.lax.axis_index("rows") * size
        part = sparse_stack(key, 24, n).columns(start, size).explicit()
        return part.bucket, part.sign

    out = P(None, "rows")
    run = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=(out, out))
    bucket, sign = jax.jit(run)(key)
    whole = jax.jit(lambda key: sparse_stack(key, 24, n).explicit())(key)
    np.testing.assert_array_equal(bucket, whole.bucket)
    np.testing.assert_array_equal(sign, whole.sign)


def test_a_window_far_out_costs_what_it_holds():
    S = sparse_stack(jax.random.key(2), 8, 2_000_000_000)
    part = jax.jit(lambda S: S.columns(1_999_999_990, 10).explicit())(S)
    assert part.shape == (8, 10) and len(np.unique(part.sign)) == 2


@pytest.mark.optimized
@pytest.mark.parametrize("new", [countsketch, sparse_stack])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_a_few_bytes_a_row(new, dtype):
    n, m, d = 1 << 16, 64, 32
    A = jax.ShapeDtypeStruct((n, d), dtype)
    run = jax.jit(lambda key, A: new(key, m, n) @ A)
    used = run.lower(jax.random.key(0), A).compile().memory_analysis()
    # Signs, offsets and buckets: up to 4 + 4 k bytes a row; A has 2 d or 4 d.
    assert used.temp_size_in_bytes < 24 * n + 32 * m * d


def heavy_rows(n, d):
    """Orthonormal columns on rows of a heavy-tailed law: some leverage is near 1."""
    r = np.random.default_rng(0)
    A = r.standard_normal((n, d)) / np.sqrt(r.chisquare(1, (n, 1)))
    return jnp.asarray(np.linalg.qr(A)[0], jnp.float32)


def test_debiased_inverse_of_a_stack_is_nearly_unbiased():
    n, d, m, num = 256, 6, 32, 1000
    U = heavy_rows(n, d)
    keys = jax.random.split(jax.random.key(3), num)
    S = jax.jit(jax.vmap(lambda key: sparse_stack(key, m, n) @ U))(keys)
    S = np.asarray(S, np.float64)
    trace = np.trace(np.linalg.inv(np.einsum("tmi,tmj->tij", S, S)), axis1=1, axis2=2)
    mean = sparse_stack(jax.random.key(0), m, n).debias(d) * trace / d
    error = 5 * mean.std() / np.sqrt(num)
    # Undebiased it is near 32 / 26 = 1.23; a Gaussian sketch leaves 1 / (m - d - 1).
    assert 0.97 - error < mean.mean() < 1 + 1 / (m - d - 1) + error


def golden(shared):
    with np.load(shared / "goldens" / "06-less-embeddings.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", ["cs", "stack"])
def test_golden_columns(name, shared, x64):
    g = golden(shared)
    bucket, sign, want = (g[f"{name}_{part}"] for part in ("bucket", "sign", "SA"))
    bucket, sign = (x.reshape(-1, len(g["A"])) for x in (bucket, sign))
    S = SparseColumns(jnp.asarray(bucket), jnp.asarray(sign), len(want))
    np.testing.assert_allclose(S @ g["A"], want, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(S.dense() @ g["A"], want, rtol=1e-10, atol=1e-9)


def test_sparse_columns_from_numpy_arrays():
    bucket, sign = np.array([[1, 0, 1], [0, 0, 1]]), np.array([[1, 1, -1], [1, -1, 1]])
    S = SparseColumns(bucket, sign, 4)
    want = np.array([[0, 1, 0], [1, 0, -1], [1, -1, 0], [0, 0, 1]]) / np.sqrt(2)
    np.testing.assert_allclose(S.dense(), want, rtol=1e-6)
    np.testing.assert_allclose(S @ np.eye(3, dtype=np.float32), want, rtol=1e-6)
    np.testing.assert_allclose(S.columns(1, 2).dense(), want[:, 1:], rtol=1e-6)


def test_derivatives_in_the_signs(x64):
    S = jax.jit(lambda key: sparse_stack(key, 4, 5, k=2).explicit())(jax.random.key(6))
    A = jnp.asarray(np.random.default_rng(7).standard_normal((5, 2)))
    weight = S.sign.astype(jnp.float64)

    def product(weight, A):
        return SparseColumns(S.bucket, weight, 4) @ A

    check_derivatives(product, (weight, A), rtol=1e-6)


def test_errors_of_construction():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"m is 10 and k is 4; .* take m = 12"):
        sparse_stack(key, 10, 16)
    with pytest.raises(ValueError, match="m is 0; wanted 1"):
        countsketch(key, 0, 16)
    with pytest.raises(ValueError, match="n is 0; wanted 1"):
        countsketch(key, 8, 0)
    with pytest.raises(ValueError, match="k is 0; wanted at least 1"):
        sparse_stack(key, 8, 16, k=0)
    with pytest.raises(TypeError, match="m is float"):
        countsketch(key, 8.0, 16)
    with pytest.raises(TypeError, match="typed key"):
        countsketch(jnp.zeros(2, jnp.uint32), 8, 16)
    ones = jnp.ones((1, 6), jnp.int32)
    with pytest.raises(ValueError, match=r"int32\[6\].*take bucket\[None\]"):
        SparseColumns(ones[0], ones[0], 4) @ jnp.ones(6)
    with pytest.raises(ValueError, match=r"sign int32\[1,5\]"):
        SparseColumns(ones, ones[:, :5], 4) @ jnp.ones(6)
    with pytest.raises(ValueError, match="m is 5 and k is 2"):
        SparseColumns(jnp.zeros((2, 6), jnp.int32), jnp.ones((2, 6)), 5).dense()


def test_integers_that_do_not_hold_the_number_of_rows():
    r = np.random.default_rng(9)
    place, sign = r.integers(0, 128, 30), r.choice([-1, 1], 30)
    operators = {
        dtype: (
            SparseColumns(place[None].astype(dtype), sign[None], 512),
            BlockRoll(sign.astype(np.int8), place[:1].astype(dtype), 300),
            Hadamard(np.ones(200, np.int8), place.astype(dtype), 200),
        )
        for dtype in (np.int32, np.int8)
    }
    A = r.standard_normal((200, 3)).astype(np.float32)
    for few, many in zip(operators[np.int8], operators[np.int32], strict=True):
        rows = A[: many.shape[1]]
        np.testing.assert_allclose(few @ rows, many @ rows, rtol=1e-6)
        np.testing.assert_allclose(few.dense(), many.dense(), rtol=1e-6)
        np.testing.assert_allclose(few @ BCOO.fromdense(rows), many @ rows, rtol=1e-5)
        Y = r.standard_normal((many.shape[0], 2)).astype(np.float32)
        np.testing.assert_allclose(few.T @ Y, many.T @ Y, rtol=1e-6)
