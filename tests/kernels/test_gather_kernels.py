"""Weighted sums of a few rows: the kernel against its definition in numpy.

The kernel runs in an interpreter here; for a TPU it is lowered, not run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.kernels import _gather_rows, gather_rows, scatter_rows

# This interpreter makes copies when they are waited for, and fast memory NaN before.
FUSED = partial(_gather_rows._fused, interpret=pltpu.InterpretParams())
KERNEL = partial(gather_rows, implementation="pallas")
PLATFORMS = ("tpu", "cuda", "cpu")
# Rows, their length, sums, draws: one of each, and blocks that are full and stick out.
SHAPES = [(1, 1, 1, 1), (30, 7, 19, 5), (8, 16, 16, 7)]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 sums and 3 draws, and 4 groups of rows on their way."""
    for name, size in dict(_SUMS=8, _PIECE=24, _NUMBERS=128, _AHEAD=4).items():
        monkeypatch.setattr(_gather_rows, name, size)


def draw(seed, shape, dtype=np.float32):
    """Whole numbers: all sums are exact. Some indices ask for no row."""
    n, d, m, s = shape
    r = np.random.default_rng(seed)
    rows = jnp.asarray(r.integers(-4, 5, (n, d)), dtype)
    index = r.integers(0, n + 3, (m, s)).astype(np.int32)
    return rows, index, r.integers(-3, 4, (m, s)).astype(np.float32)


def definition(rows, index, weight):
    n, d = rows.shape
    padded = np.zeros((n + 1, d))
    padded[:n] = rows
    return (weight[..., None] * padded[np.minimum(index.astype(int), n)]).sum(1)


@pytest.mark.parametrize(
    "shape, dtype",
    [*((s, "float32") for s in SHAPES), (SHAPES[1], "bfloat16")],
    ids=str,
)
def test_the_kernel_is_its_definition(shape, dtype, small_blocks):
    operands = draw(0, shape, dtype)
    got = jax.jit(FUSED)(*operands)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, definition(*operands))
    np.testing.assert_array_equal(got, gather_rows(*operands))


def test_no_row_is_zeros_even_among_rows_of_nan(small_blocks):
    rows = jnp.full((4, 2), np.nan).at[1].set(3.0)
    index = jnp.array([[9, 1], [4, 4], [-3, 1], [-5, 4], [1, 2]])
    got = jax.jit(FUSED)(rows, index, jnp.full((5, 2), 2.0))
    np.testing.assert_array_equal(got[:, 0], [6, 0, 12, 0, np.nan])
    np.testing.assert_array_equal(got, gather_rows(rows, index, jnp.full((5, 2), 2.0)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint32])
def test_indices_and_weights_of_any_width(dtype, small_blocks):
    rows, index, weight = draw(2, (200, 3, 5, 4))
    index, weight = (index % 100).astype(dtype), weight.astype(np.int8)
    want = definition(rows, index, weight)
    np.testing.assert_array_equal(jax.jit(FUSED)(rows[:100], index, weight), want)
    for fn in (KERNEL, gather_rows):  # int8 holds no 200
        np.testing.assert_array_equal(fn(rows, index, weight), want)
    back = scatter_rows(np.ones((5, 1), np.float32), index, weight, num_rows=200)
    assert float(back.sum()) == weight.sum()


def test_half_precision_adds_in_float32(small_blocks):
    rows = jnp.full((2, 1), 128, "bfloat16")  # 384 + 1 is 384 in bfloat16
    index, weight = jnp.zeros((1, 4), int), jnp.array([[1, 1, 1, 2**-7]])
    assert float(jax.jit(FUSED)(rows, index, weight)[0, 0]) == 385


def test_gradients_are_those_of_the_definition():
    rows, index, weight = draw(3, (7, 3, 4, 5))

    def loss(fn, rows, weight):
        return jnp.sin(fn(rows, index, weight)).sum()

    got = jax.grad(partial(loss, KERNEL), (0, 1))(rows, weight)
    slope = np.cos(definition(rows, index, weight))
    back = scatter_rows(slope.astype(np.float32), index, weight, num_rows=7)
    np.testing.assert_allclose(got[0], back, rtol=1e-5, atol=1e-5)
    want = jax.grad(partial(loss, gather_rows), (0, 1))(rows, weight)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 0, None), (0, None, 0)], ids=str)
def test_vmap_is_one_call_with_more_sums(axes):
    shape, batch = (7, 2, 3, 4), range(3)
    each = [draw(10 + i, shape) for i in batch]
    given = [
        np.stack([x[j] for x in each], -1) if axis == 0 else each[0][j]
        for j, axis in enumerate(axes)
    ]
    mapped = jax.vmap(KERNEL, [None if a is None else -1 for a in axes])
    got = jax.jit(mapped)(*given)
    for i in batch:
        one = (each[i if axis == 0 else 0][j] for j, axis in enumerate(axes))
        np.testing.assert_array_equal(got[i], definition(*one))
    text = jax.export.export(jax.jit(mapped), platforms=["tpu"])(*given).mlir_module()
    assert text.count("@tpu_custom_call") == 1 and "tensor<3x3x2xf32>" in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowering_for_each_platform(dtype):
    operands = draw(4, (20, 100, 16, 3), dtype)
    for fn in (KERNEL, gather_rows):
        for platform in PLATFORMS:
            export = jax.export.export(jax.jit(fn), platforms=[platform])
            kernel = "tpu_custom_call" in export(*operands).mlir_module()
            assert kernel == (fn is KERNEL and platform == "tpu")


def test_shard_map():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    halves = draw(5, (4, 4, 4, 3)), draw(6, (4, 4, 4, 3))
    operands = [np.concatenate(pair) for pair in zip(*halves, strict=True)]
    fn = jax.shard_map(KERNEL, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    fn = jax.jit(fn)
    export = jax.export.export(fn, platforms=["tpu"])(*operands)
    assert "tpu_custom_call" in export.mlir_module()
    want = np.concatenate([definition(*half) for half in halves])
    np.testing.assert_array_equal(fn(*operands), want)


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((5, 3, 2, 2), "bfloat16"),  # rows lie in pairs
        ((4, 3, 2, 2), "float64"),
        ((4, 3, 2, 2), "float16"),
        ((4, 3, 2, 0), "float32"),
        ((4, 9000, 2, 2), "float32"),
    ],
    ids=str,
)
def test_what_is_no_kernel(shape, dtype, x64):
    operands = draw(6, shape, dtype)
    export = jax.export.export(jax.jit(KERNEL), platforms=["tpu"])(*operands)
    assert "tpu_custom_call" not in export.mlir_module()
    got = KERNEL(*operands)
    assert got.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    np.testing.assert_array_equal(got, definition(*operands))


def test_errors():
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        gather_rows(*draw(7, (2, 2, 2, 2)), implementation="triton")
