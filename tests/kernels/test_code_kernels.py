"""Codes in bytes: packing, and products of matrices of codes.

The kernel runs in interpret mode here; for a TPU it is lowered, not run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.kernels import (
    MOST_TERMS,
    CodeGrid,
    _integer_matmul,
    integer_matmul,
    pack_levels,
    unpack_levels,
)

# One block, blocks of every axis that stick out, one row, one column, one term.
SHAPES = [(5, 7, 3), (19, 33, 21), (1, 9, 1), (8, 1, 8)]
PER_BYTE = {2: 4, 3: 2, 4: 2, 5: 1, 6: 1, 7: 1, 8: 1}


@pytest.fixture
def small_blocks(monkeypatch):
    for name in ("_ROWS", "_COLUMNS", "_TERMS"):
        monkeypatch.setattr(_integer_matmul, name, 8)


@pytest.mark.parametrize("bits", PER_BYTE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (8, 8)], ids=str)
def test_unpacking_undoes_packing(bits, shape):
    levels = np.random.default_rng(0).integers(0, 2**bits, shape)
    packed = jax.jit(pack_levels, static_argnums=1)(jnp.asarray(levels), bits)
    assert packed.dtype == jnp.uint8
    short, long = sorted(shape)
    assert packed.size == short * -(-long // PER_BYTE[bits])
    back = unpack_levels(packed, bits, shape)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, levels)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_byte_holds_levels_of_contiguous_runs(bits):
    levels = np.random.default_rng(1).integers(0, 2**bits, (2, 16))
    runs = levels.reshape(2, PER_BYTE[bits], -1)
    weights = 2 ** (bits * np.arange(PER_BYTE[bits]))
    want = (runs * weights[None, :, None]).sum(1)
    np.testing.assert_array_equal(pack_levels(jnp.asarray(levels), bits), want)
    across = pack_levels(jnp.asarray(levels.T), bits)
    np.testing.assert_array_equal(across, want.T)


def test_vmap_of_packing():
    levels = np.random.default_rng(2).integers(0, 4, (5, 6, 3))
    packed = jax.vmap(partial(pack_levels, bits=2), -1)(jnp.asarray(levels))
    back = jax.vmap(lambda x: unpack_levels(x, 2, (5, 6)), 0, -1)(packed)
    np.testing.assert_array_equal(back, levels)


def grid(rng, *shape):
    """Steps and offsets that are powers of two: every sum is exact."""
    step = 2.0 ** rng.integers(-2, 3, shape)
    offset = rng.integers(-3, 4, shape) / 4
    zero = rng.integers(-128, 128, shape)
    kinds = ("float32", "int32", "float32")
    return CodeGrid(*map(jnp.asarray, (step, zero, offset), kinds))


def operands(seed, m, k, n, one_grid=False):
    rng = np.random.default_rng(seed)
    lhs, rhs = (rng.integers(-128, 128, s).astype("int8") for s in ((m, k), (k, n)))
    rows, columns = (1, 1) if one_grid else (m, n)
    return jnp.asarray(lhs), jnp.asarray(rhs), grid(rng, rows, 1), grid(rng, 1, columns)


def values(codes, grid):
    grid = CodeGrid(*(np.asarray(x, np.float64) for x in grid))
    return (np.asarray(codes, np.float64) - grid.zero) * grid.step + grid.offset


def definition(lhs, rhs, lhs_grid, rhs_grid):
    return values(lhs, lhs_grid) @ values(rhs, rhs_grid)


def fused(lhs, rhs, lhs_grid, rhs_grid):
    return _integer_matmul._fused(lhs, rhs, *lhs_grid, *rhs_grid, interpret=True)


@pytest.mark.parametrize("one_grid", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", [integer_matmul, fused], ids=["xla", "pallas"])
def test_products_are_those_of_the_values(form, shape, one_grid, small_blocks):
    given = operands(0, *shape, one_grid)
    got = jax.jit(form)(*given)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, definition(*given), rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("form", [integer_matmul, fused], ids=["xla", "pallas"])
def test_the_longest_sum_does_not_overflow(form):
    ones = jnp.full((1, MOST_TERMS), 127, jnp.int8)
    least = CodeGrid(jnp.ones((1, 1)), jnp.full((1, 1), -128), jnp.zeros((1, 1)))
    got = form(ones, ones.T, least, least)
    assert float(got[0, 0]) == np.float32(MOST_TERMS * 255**2)
    with pytest.raises(ValueError, match=r"33026 terms.*at most 33025"):
        longer = jnp.zeros((1, MOST_TERMS + 1), jnp.int8)
        integer_matmul(longer, longer.T, least, least)


@pytest.mark.parametrize("axes", [0, (0, None, None, 0), (-1, 0, -1, None)], ids=str)
def test_vmap(axes):
    one = [operands(seed, 4, 6, 5) for seed in range(3)]
    each = (axes,) * 4 if axes == 0 else axes
    given = [
        part[0]
        if axis is None
        else jax.tree.map(lambda *x, axis=axis: jnp.stack(x, axis), *part)
        for part, axis in zip(zip(*one, strict=True), each, strict=True)
    ]
    fn = partial(integer_matmul, implementation="pallas")
    many = jax.jit(jax.vmap(fn, each))(*given)
    for i in range(3):
        want = definition(
            *(one[0][j] if axis is None else one[i][j] for j, axis in enumerate(each))
        )
        np.testing.assert_allclose(many[i], want, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_lowering_for_each_platform(implementation, batch):
    given = operands(1, 12, 30, 20)
    fn = partial(integer_matmul, implementation=implementation)
    if batch:
        given, fn = jax.tree.map(lambda x: jnp.stack([x] * 2), given), jax.vmap(fn)
    for platform in ("tpu", "cuda", "cpu"):
        export = jax.export.export(jax.jit(fn), platforms=[platform])
        text = export(*given).mlir_module()
        kernel = implementation == "pallas" and platform == "tpu"
        assert ("tpu_custom_call" in text) == kernel
        product = [x for x in text.splitlines() if "stablehlo.dot_general" in x]
        assert kernel or (len(product) == 1 and product[0].count("xi8>") == 2)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_packing_lowers_for_each_platform(platform):
    def both(levels):
        return unpack_levels(pack_levels(levels, 4), 4, (6, 9))

    export = jax.export.export(jax.jit(both), platforms=[platform])
    text = export(jnp.zeros((6, 9), jnp.uint8)).mlir_module()
    assert "custom_call" not in text and "shift_left" in text


def test_no_rows_and_no_terms():
    one = CodeGrid(
        *(jnp.ones((1, 1), kind) for kind in ("float32", "int32", "float32"))
    )
    for m, k in ((0, 3), (2, 0)):
        lhs, rhs = jnp.zeros((m, k), jnp.int8), jnp.zeros((k, 4), jnp.int8)
        for implementation in ("xla", "pallas"):
            got = integer_matmul(lhs, rhs, one, one, implementation=implementation)
            np.testing.assert_array_equal(got, np.zeros((m, 4)))


def test_errors():
    lhs, rhs, *grids = operands(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        integer_matmul(lhs, rhs, *grids, implementation="triton")
    for wrong in ((lhs, lhs), (lhs.astype("int32"), rhs), (lhs[0], rhs)):
        with pytest.raises(ValueError, match=r"wanted int8 \(m, k\) and int8 \(k, n\)"):
            integer_matmul(*wrong, *grids)
