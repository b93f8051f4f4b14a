"""Products with a random matrix: the kernel against the matrix itself.

The kernel runs in interpret mode here; for a TPU it is lowered, not run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.kernels import (
    _random_matmul,
    random_matmul,
    random_matmul_transpose,
    random_tile,
)

KEY = jax.random.key(5)
WORDS = jax.random.key_data(KEY)
START = jnp.uint32(2**32 - 5)  # the numbers of columns begin again at 0
LAWS = ["normal", "sign"]
PLATFORMS = ("tpu", "cuda", "cpu")
SHAPES = [(1, 1, 1), (70, 37, 11)]  # of R, and columns


@pytest.fixture
def small_blocks(monkeypatch):
    for name, size in dict(_ROWS=32, _COLUMNS=16, _WIDTH=8).items():
        monkeypatch.setattr(_random_matmul, name, size)


def whole(seed, *shape, dtype=np.float32):
    r = np.random.default_rng(seed)
    return jnp.asarray(r.integers(-4, 5, shape), dtype)


def fused(law, size, transposed):
    form = _random_matmul._Form(law, size, transposed)
    return jax.jit(partial(_random_matmul._fused, form, interpret=True))


def product(law, size, transposed, **options):
    """The public function of the same arguments."""
    options["num_columns" if transposed else "num_rows"] = size
    fn = random_matmul_transpose if transposed else random_matmul
    return partial(fn, law=law, **options)


def pallas(law, size, transposed):
    return product(law, size, transposed, implementation="pallas")


@pytest.mark.parametrize("law", LAWS)
def test_tiles_of_the_kernel_are_bitwise_those_of_the_matrix(law, small_blocks):
    # A product with unit vectors, in one term each, is the matrix.
    m, n = 70, 37
    R = random_tile(KEY, START, m, n, law).astype(jnp.float32)
    got = fused(law, m, False)(WORDS, START, jnp.eye(n))
    np.testing.assert_array_equal(got, R)
    np.testing.assert_array_equal(fused(law, n, True)(WORDS, START, jnp.eye(m)), R.T)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("law", LAWS)
def test_the_kernel_is_its_definition(law, shape, dtype, small_blocks):
    m, n, d = shape
    R = np.asarray(random_tile(KEY, START, m, n, law), np.float64)
    for transposed, D in ((False, R), (True, R.T)):
        rows = whole(0, D.shape[1], d, dtype=dtype)
        got = fused(law, len(D), transposed)(WORDS, START, rows)
        assert got.dtype == jnp.float32
        want = D @ np.asarray(rows, np.float64)
        same = product(law, len(D), transposed)(KEY, START, rows)
        exact = law == "sign"  # a sum of whole numbers
        for found in (got, same):
            np.testing.assert_allclose(found, want, rtol=0, atol=0 if exact else 2e-5)


def test_signs_lose_nothing_of_float32(small_blocks):
    # Numbers with all 24 bits, each alone in its row of R A.
    rows = jnp.diag(
        jnp.asarray(np.random.default_rng(1).standard_normal(20), "float32")
    )
    R = random_tile(KEY, START, 33, 20, "sign").astype(jnp.float32)
    got = fused("sign", 33, False)(WORDS, START, rows)
    np.testing.assert_array_equal(got, R * jnp.diag(rows)[None])


def test_half_precision_adds_in_float32(small_blocks):
    n = 600  # bfloat16 would stop counting at 256
    signs = random_tile(KEY, START, 1, n, "sign").astype("bfloat16")
    assert float(fused("sign", 1, False)(WORDS, START, signs.T)[0, 0]) == n


@pytest.mark.parametrize("law", LAWS)
def test_infinity_and_nan_stay_in_their_columns(law, small_blocks):
    rows = whole(2, 20, 3).at[3, 0].set(np.inf).at[17, 1].set(np.nan)
    got = fused(law, 5, False)(WORDS, START, rows)
    assert np.isfinite(got[:, 2]).all() and np.isnan(got[:, 1]).all()
    if law == "sign":  # at full precision on a TPU normal numbers make NaN of it
        R = random_tile(KEY, START, 5, 20, law)
        np.testing.assert_array_equal(got[:, 0], np.inf * R[:, 3])


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_those_of_the_definition(transposed):
    m, n = 6, 9
    rows = whole(3, m if transposed else n, 2)
    size = n if transposed else m
    fn = pallas("sign", size, transposed)
    back = product("sign", len(rows), not transposed)

    def loss(rows):
        return jnp.sin(fn(KEY, START, rows)).sum()

    slope = jnp.cos(fn(KEY, START, rows))
    want = back(KEY, START, slope)
    np.testing.assert_allclose(jax.grad(loss)(rows), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [(None, None, 0), (0, 0, None), (0, None, 0)], ids=str)
def test_vmap(axes, transposed):
    law, size, n, batch = "sign", 40, 9, range(3)
    keys = jax.random.split(jax.random.key(8), 3)
    starts, many = jnp.arange(3, dtype=jnp.uint32), whole(4, 3, n, 2)
    given = [
        x if a == 0 else x[1] for a, x in zip(axes, (keys, starts, many), strict=True)
    ]
    fn = pallas(law, size, transposed)
    mapped = jax.jit(jax.vmap(fn, axes))
    got = mapped(*given)
    for i in batch:
        one = (x[i] if a == 0 else x for a, x in zip(axes, given, strict=True))
        np.testing.assert_array_equal(got[i], product(law, size, transposed)(*one))
    text = jax.export.export(mapped, platforms=["tpu"])(*given).mlir_module()
    assert text.count("@tpu_custom_call") == 1
    # Matrices alone are one wide matrix, whose R is drawn once.
    assert ("-> tensor<40x6xf32>" in text) == (axes == (None, None, 0))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("law, dtype", [("sign", "bfloat16"), ("normal", "float32")])
def test_lowering_for_each_platform(law, dtype, transposed):
    rows = jnp.ones((600, 130), dtype)
    for make in (pallas, product):
        fn = jax.jit(make(law, 1000, transposed))
        for platform in PLATFORMS:
            export = jax.export.export(fn, platforms=[platform])(KEY, START, rows)
            kernel = "tpu_custom_call" in export.mlir_module()
            assert kernel == (make is pallas and platform == "tpu")


def test_shard_map_of_columns_of_the_random_matrix():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    rows, fn = whole(6, 10, 3), pallas("sign", 4, False)

    def shard(rows):
        first = START + 5 * jax.lax.axis_index("data").astype(jnp.uint32)
        return jax.lax.psum(fn(KEY, first, rows), "data")

    sharded = jax.jit(
        jax.shard_map(shard, mesh=mesh, in_specs=P("data"), out_specs=P())
    )
    export = jax.export.export(sharded, platforms=["tpu"])(rows)
    assert "tpu_custom_call" in export.mlir_module()
    np.testing.assert_array_equal(sharded(rows), fn(KEY, START, rows))


def test_float64_and_no_columns_are_no_kernels(x64):
    fn = jax.jit(pallas("sign", 4, False))
    for rows in (whole(7, 5, 3, dtype="float64"), jnp.zeros((5, 0), "float32")):
        text = jax.export.export(fn, platforms=["tpu"])(KEY, START, rows).mlir_module()
        assert "tpu_custom_call" not in text
        got, want = fn(KEY, START, rows), product("sign", 4, False)(KEY, START, rows)
        assert got.dtype == rows.dtype
        np.testing.assert_array_equal(got, want)


def test_float32_is_a_kernel_beside_float64(x64, small_blocks):
    rows = whole(8, 20, 3)
    got = fused("normal", 40, False)(WORDS, START, rows)
    want = product("normal", 40, False)(KEY, START, rows)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    fn = jax.jit(pallas("normal", 40, False))
    text = jax.export.export(fn, platforms=["tpu"])(KEY, START, rows).mlir_module()
    assert "tpu_custom_call" in text


def test_a_key_of_another_kind_and_its_words():
    key, rows = jax.random.key(6, impl="rbg"), whole(9, 12, 2)
    fn = pallas("sign", 40, False)
    np.testing.assert_array_equal(
        fn(key, START, rows), product("sign", 40, False)(key, START, rows)
    )
    text = jax.export.export(jax.jit(fn), platforms=["tpu"])(key, START, rows)
    assert "tpu_custom_call" in text.mlir_module()


def test_errors():
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        pallas("sign", 2, False)(WORDS, START, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"batch of keys.*jax\.vmap"):
        pallas("sign", 2, False)(jax.random.split(KEY), START, jnp.ones((2, 1)))
    for transposed in (False, True):
        fn = product("sign", 2, transposed, implementation="triton")
        with pytest.raises(
            ValueError, match=r"implementation is 'triton'.*xla.*pallas"
        ):
            fn(KEY, START, jnp.ones((2, 1)))
