"""Rows to codes: the kernels against their definitions, and those against quantizers.

The kernels run in interpret mode here; for a TPU they are lowered, not run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.kernels import (
    _round_rows,
    _round_transformed,
    mix_columns,
    reflect_rows,
    round_rows,
    round_transformed,
    row_column_bits,
    row_words,
)
from jaxmethods.quantize import bhq, psq
from jaxmethods.quantize._householder import fit_householder

KEY = jax.random.key(0)
TOP = 31
# One row, one column, blocks of rows that are alone, full and stick out.
SHAPES = [(1, 1), (1, 9), (7, 1), (5, 33), (64, 40), (70, 17)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(_round_rows, "_NUMBERS", 32 * 20)
    monkeypatch.setattr(_round_transformed, "_COLUMNS", 16)


def normal(seed, *shape):
    rows = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(rows * np.exp(rows[..., :1]), jnp.float32)


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_has_the_codes_of_the_definition(shape, small_blocks):
    rows, words = normal(0, *shape), row_words(KEY, shape[0])
    got = jax.jit(partial(_round_rows._fused, TOP, interpret=True))(rows, words)
    assert_same(got, jax.jit(partial(_round_rows._rounded, TOP))(rows, words))


def test_bits_of_a_tile_are_those_of_the_matrix():
    whole = row_column_bits(KEY, (9, 40))
    columns = jnp.arange(30, 40, dtype=jnp.uint32)[None]
    tile = mix_columns(row_words(KEY, 9)[3:5], columns)
    np.testing.assert_array_equal(tile, whole[3:5, 30:])


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_rows_are_those_of_the_per_sample_quantizer(bits):
    rows = normal(1, 6, 30)
    codes, step, low = jax.jit(partial(round_rows, bits=bits))(KEY, rows)
    want = jax.jit(psq(bits).quantize)(KEY, rows)
    np.testing.assert_array_equal(step, want.decoder.grid.step)
    np.testing.assert_array_equal(low, want.decoder.grid.offset)
    np.testing.assert_allclose(codes * step + low, want.dequantize(), rtol=1e-5)


def test_expectation_is_the_row_and_its_ends_stay():
    row = jnp.linspace(-1, 2, 64)[None] ** 3
    keys = jax.random.split(jax.random.key(1), 4000)
    codes, step, low = jax.jit(jax.vmap(partial(round_rows, bits=4), (0, None)))(
        keys, row
    )
    draws = codes * step + low
    error = 5 * step[0, 0, 0] / 2 / np.sqrt(len(keys))
    np.testing.assert_allclose(draws.mean(0), row, atol=float(error))
    for end in (0, -1):
        np.testing.assert_allclose(draws[:, 0, end], row[0, end], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_nan_and_no_other(bad, small_blocks):
    rows = normal(2, 40, 17).at[33, 16].set(bad)
    words = row_words(KEY, 40)
    for fn in (_round_rows._rounded, partial(_round_rows._fused, interpret=True)):
        codes, grid = jax.jit(partial(fn, TOP))(rows, words)
        values = codes * grid[:, :1] + grid[:, 1:]
        np.testing.assert_array_equal(np.isnan(values).all(1), np.arange(40) == 33)
        assert np.isfinite(values[:33]).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_rows_of_any_size_and_constant_rows(scale):
    rows = (normal(3, 4, 20) * scale).at[1].set(7.3).at[2].set(0.0)
    codes, step, low = round_rows(KEY, rows, bits=6)
    values = codes * step + low
    np.testing.assert_array_equal(values[1:3], rows[1:3])
    assert (jnp.abs(values - rows) <= step * (1 + 1e-5)).all()


def test_half_precision_is_read_as_it_is():
    rows = normal(4, 5, 40).astype("bfloat16")
    words = row_words(KEY, 5)
    want = jax.jit(partial(_round_rows._rounded, 255))(rows.astype("float32"), words)
    for fn in (_round_rows._rounded, partial(_round_rows._fused, interpret=True)):
        assert_same(jax.jit(partial(fn, 255))(rows, words), want)


def test_float64_is_no_kernel(x64):
    rows = jnp.asarray(normal(5, 4, 6), "float64")
    got = round_rows(KEY, rows, bits=4, implementation="pallas")
    assert got.step.dtype == jnp.float64
    assert_same(got, round_rows(KEY, rows, bits=4))


def transform_of(rows):
    """A block Householder transform as a matrix, and what it is applied to."""
    low = rows.min(1, keepdims=True)
    plan = fit_householder((rows.max(1, keepdims=True) - low)[:, 0])
    return plan, plan.apply(jnp.eye(len(rows))), low


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (19, 16), (20, 53)], ids=str)
def test_a_transform_before_rounding(shape, small_blocks):
    rows = normal(6, *shape)
    matrix = normal(7, shape[0], shape[0])
    operands = matrix, rows, rows.min(1, keepdims=True)
    fused = partial(_round_transformed._fused, TOP, interpret=True)
    codes, grid = jax.jit(fused)(*operands, row_words(KEY, shape[0]))
    want = round_transformed(KEY, *operands, bits=5)
    np.testing.assert_allclose(grid, jnp.concatenate(want[1:], 1), rtol=1e-4, atol=1e-5)
    # Sums in another order move some entries past their random number.
    moved = codes.astype(int) - want.codes.astype(int)
    assert np.abs(moved).max() <= 1 and (moved != 0).mean() < 0.01


def test_a_block_householder_transform_before_rounding():
    rows = normal(8, 24, 50)
    plan, matrix, low = transform_of(rows)
    codes, step, _ = round_transformed(KEY, matrix, rows, low, bits=8)
    want = bhq(8).quantize(KEY, rows)
    np.testing.assert_allclose(step, want.decoder.grid.step, rtol=1e-5)
    moved = codes.astype(int) - want.codes.astype(int)
    assert np.abs(moved).max() <= 1 and (moved != 0).mean() < 0.01
    assert plan.size.max() > 2


def test_nan_reaches_all_rows_that_mix_with_it(small_blocks):
    rows = normal(9, 6, 40).at[2, 39].set(np.nan)
    operands = jnp.ones((6, 6)), rows, jnp.zeros((6, 1)), row_words(KEY, 6)
    for fn in (
        _round_transformed._rounded,
        partial(_round_transformed._fused, interpret=True),
    ):
        assert np.isnan(jax.jit(partial(fn, TOP))(*operands)[1]).all()


def test_reflections_are_the_definition():
    rows, scale = normal(10, 11, 6), jnp.exp(normal(11, 11, 1) / 4)
    group = jnp.asarray(np.random.default_rng(12).permutation(np.arange(11) % 3))
    normals = normal(13, 11, 1)
    shift = rows.min(1, keepdims=True)
    fn = jax.jit(partial(reflect_rows, num_groups=5))
    values = (np.asarray(rows) - shift) * scale
    same = np.asarray(group)[:, None] == np.asarray(group)[None]
    want = values - normals * (same @ (normals * values))
    np.testing.assert_allclose(
        fn(rows, shift, scale, normals, group), want, rtol=1e-4, atol=1e-4
    )
    one_shift = fn(rows, jnp.zeros((1, 1)), scale, normals, group)
    none = fn(rows, jnp.zeros((11, 1)), scale, normals, group)
    np.testing.assert_array_equal(one_shift, none)


def reflected(rows):
    plan, _, low = transform_of(rows)
    return plan.apply(rows, low)


def forms():
    """Name, function of a batch of rows, and whether a TPU gets a kernel."""
    kernel = dict(bits=5, implementation="pallas")

    def transformed(rows, **options):
        _, matrix, low = transform_of(rows)
        return round_transformed(KEY, matrix, rows, low, **options)

    yield "round_rows", partial(round_rows, KEY, **kernel), True
    yield "round_rows in XLA", partial(round_rows, KEY, bits=5), False
    yield "transformed", partial(transformed, **kernel), True
    yield "transformed in XLA", partial(transformed, bits=5), False
    yield "reflected", reflected, False


FORMS = {name: (fn, kernel) for name, fn, kernel in forms()}


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "vmap"])
@pytest.mark.parametrize("name", FORMS)
def test_lowering_for_each_platform(name, batch):
    fn, kernel = FORMS[name]
    rows = normal(14, *batch, 12, 40)
    fn = jax.jit(jax.vmap(fn) if batch else fn)
    for platform in ("tpu", "cuda", "cpu"):
        text = jax.export.export(fn, platforms=[platform])(rows).mlir_module()
        assert ("tpu_custom_call" in text) == (kernel and platform == "tpu")


@pytest.mark.parametrize("name", ["round_rows", "reflected"])
def test_vmap_from_behind(name):
    fn, _ = FORMS[name]
    rows = normal(15, 3, 8, 10)
    many = jax.jit(jax.vmap(fn, -1))(jnp.moveaxis(rows, 0, -1))
    for i in range(3):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5),
            many,
            fn(rows[i]),
        )


@pytest.mark.parametrize("name", FORMS)
def test_shard_map(name):
    fn, _ = FORMS[name]
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    rows = normal(16, 12, 10)
    sharded = jax.shard_map(fn, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    got = jax.tree.leaves(jax.jit(sharded)(rows))
    want = jax.tree.leaves(fn(rows[6:]))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a[6:], b, rtol=1e-5, atol=1e-5)


def test_no_derivative():
    rows = normal(17, 4, 5)
    for implementation in ("xla", "pallas"):
        fn = partial(round_rows, KEY, bits=3, implementation=implementation)
        slope = jax.grad(lambda x, fn=fn: fn(x).step.sum() + fn(x).low.sum())(rows)
        np.testing.assert_array_equal(slope, jnp.zeros_like(rows))


def test_errors():
    rows = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        round_rows(KEY, rows, bits=4, implementation="triton")
    with pytest.raises(ValueError, match=r"float32\[0,4\].*at least one entry"):
        round_rows(KEY, rows[:0], bits=4)
    with pytest.raises(ValueError, match=r"float32\[4\].*wanted a matrix"):
        round_rows(KEY, rows[0], bits=4)
    with pytest.raises(TypeError, match=r"rows is int32\[3,4\]"):
        round_rows(KEY, rows.astype(int), bits=4)
    with pytest.raises(ValueError, match="bits"):
        round_rows(KEY, rows, bits=9)
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        round_rows(0, rows, bits=4)
    with pytest.raises(ValueError, match=r"wanted \(3, 3\) and \(3, 1\)"):
        round_transformed(KEY, rows, rows, rows[:, :1], bits=4)
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        round_transformed(KEY, rows, rows, rows, bits=4, implementation="triton")
