"""Signed blocks of rows at cyclic offsets: the kernels against their definition.

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
    _rolled_tiles,
    block_roll,
    block_roll_transpose,
    rolled_buckets,
)

PLATFORMS = ("tpu", "cuda", "cpu")
# Rows, columns, stacks, buckets: a chunk of 8 rows that sticks out, tiles of 24 that
# meet several blocks, blocks that are longer than chunks, and than all rows.
SHAPES = [(1, 1, 1, 3), (50, 7, 3, 5), (60, 4, 2, 20), (21, 5, 1, 33)]


@pytest.fixture
def small_blocks(monkeypatch):
    for name, size in dict(_CHUNK=8, _TILE=24, _LANES=4).items():
        monkeypatch.setattr(_rolled_tiles, name, size)


def draw(seed, shape, dtype=np.float32):
    """Whole numbers, whose sums are exact: rows, sums, signs and offsets."""
    n, d, k, size = shape
    r = np.random.default_rng(seed)
    rows, sums = r.integers(-9, 10, (n, d)), r.integers(-9, 10, (k, size, d))
    sign = r.choice([-1, 1], (k, n))
    offset = r.integers(0, size, (k, (n + 2 * size - 2) // size))
    kinds = dtype, dtype, jnp.int8, jnp.int32
    return map(jnp.asarray, (rows, sums, sign, offset), kinds)


def definition(rows, sign, offset, phase, size):
    k, n = sign.shape
    offset = np.asarray(offset)
    position = phase + np.arange(n)
    out = np.zeros((k, size, rows.shape[1]))
    for j in range(k):
        bucket = (position + offset[j, position // size]) % size
        np.add.at(out[j], bucket, sign[j][:, None] * np.asarray(rows, np.float64))
    return out


def roll(size):
    return partial(block_roll, size=size, implementation="pallas")


BACK = partial(block_roll_transpose, implementation="pallas")


@pytest.mark.parametrize(
    "shape, dtype",
    [*((s, "float32") for s in SHAPES), (SHAPES[1], "bfloat16")],
    ids=str,
)
def test_the_kernels_are_their_definitions_at_every_phase(shape, dtype, small_blocks):
    rows, sums, *places = draw(0, shape, dtype)
    n, _, k, size = shape
    add = jax.jit(partial(_rolled_tiles.add_tiles, size, interpret=True))
    collect = jax.jit(partial(_rolled_tiles.collect_tiles, interpret=True))
    for phase in {*range(min(size, 9)), size - 1}:
        got = add(rows, *places, jnp.int32(phase))
        back = collect(sums, *places, jnp.int32(phase))
        assert got.dtype == back.dtype == jnp.float32
        np.testing.assert_array_equal(got, definition(rows, *places, phase, size))
        bucket = np.asarray(rolled_buckets(places[1], phase, n, size=size))
        want = sum(
            places[0][j][:, None] * np.asarray(sums, np.float32)[j, bucket[j]]
            for j in range(k)
        )
        np.testing.assert_array_equal(back, want)


def test_a_nan_stays_in_its_bucket_and_its_rows(small_blocks):
    shape = (50, 3, 2, 11)
    rows, sums, *places = draw(1, shape)
    add = jax.jit(partial(_rolled_tiles.add_tiles, 11, interpret=True))
    got = add(rows.at[20, 1].set(np.nan), *places, jnp.int32(4))
    bucket = np.asarray(rolled_buckets(places[1], 4, 50, size=11))
    want = np.zeros((2, 11, 3), bool)
    want[[0, 1], bucket[:, 20], 1] = True
    np.testing.assert_array_equal(np.isnan(got), want)
    collect = jax.jit(partial(_rolled_tiles.collect_tiles, interpret=True))
    back = collect(sums.at[1, 6, 2].set(np.nan), *places, jnp.int32(4))
    np.testing.assert_array_equal(np.isnan(back[:, 2]), bucket[1] == 6)
    assert np.isfinite(back[:, :2]).all()


def test_half_precision_adds_in_float32(small_blocks):
    n = 600  # bfloat16 would stop counting at 256
    ones, sign = jnp.ones((n, 1), "bfloat16"), jnp.ones((1, n), "bfloat16")
    add = jax.jit(partial(_rolled_tiles.add_tiles, 2, interpret=True))
    got = add(ones, sign, jnp.zeros((1, 300), int), jnp.int32(0))
    assert got.tolist() == [[[300.0], [300.0]]]


def test_signs_are_any_numbers(small_blocks):
    rows, _, _, offset = draw(2, SHAPES[1])
    sign = np.random.default_rng(3).integers(-3, 4, (3, 50)) / 2
    add = jax.jit(partial(_rolled_tiles.add_tiles, 5, interpret=True))
    got = add(rows, jnp.asarray(sign, "float16"), offset, jnp.int32(2))
    np.testing.assert_array_equal(got, definition(rows, sign, offset, 2, 5))


def test_gradients_are_those_of_the_definition():
    rows, sums, sign, offset = draw(4, (70, 2, 1, 40))
    sign = sign.astype(jnp.float32)

    def loss(fn, values, sign):
        return jnp.sin(fn(values, sign, offset, 3)).sum()

    plain = partial(block_roll, size=40)
    for kernel, form, values in ((roll(40), plain, rows), (BACK, None, sums)):
        form = form or block_roll_transpose
        got = jax.jit(jax.grad(partial(loss, kernel), (0, 1)))(values, sign)
        want = jax.jit(jax.grad(partial(loss, form), (0, 1)))(values, sign)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    # By hand: the adjoint of the slope.
    slope = jnp.cos(plain(rows, sign, offset, 3))
    got = jax.jit(jax.grad(partial(loss, roll(40))))(rows, sign)
    want = block_roll_transpose(slope, sign, offset, 3)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [(0, None, None, None), (-1, 0, 0, 0)], ids=str)
def test_vmap(axes):
    size, phases = 33, np.array([0, 7], np.int32)
    each = [(*draw(10 + i, (70, 2, 1, size)), phase) for i, phase in enumerate(phases)]
    one, two = (
        [
            np.stack([x[j] for x in each], a or 0) if a is not None else each[0][j]
            for j, a in zip(places, axes, strict=True)
        ]
        for places in ((0, 2, 3, 4), (1, 2, 3, 4))
    )
    for fn, given in ((roll(size), one), (BACK, two)):
        mapped = jax.jit(jax.vmap(fn, axes))
        got = mapped(*given)
        plain = partial(block_roll, size=size) if given is one else block_roll_transpose
        for i in range(2):
            alone = (
                x if a is None else np.take(x, i, a)
                for x, a in zip(given, axes, strict=True)
            )
            np.testing.assert_array_equal(got[i], plain(*map(jnp.asarray, alone)))
        text = jax.export.export(mapped, platforms=["tpu"])(*given).mlir_module()
        assert text.count("@tpu_custom_call") == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowering_for_each_platform(dtype):
    rows, sums, *places = draw(5, (1100, 130, 4, 250), dtype)
    for pallas in (True, False):
        options = dict(implementation="pallas") if pallas else {}
        for fn, values in (
            (partial(block_roll, size=250), rows),
            (block_roll_transpose, sums),
        ):
            fn = jax.jit(partial(fn, **options))
            for platform in PLATFORMS:
                export = jax.export.export(fn, platforms=[platform])
                text = export(values, *places, jnp.int32(9)).mlir_module()
                kernel = "tpu_custom_call" in text
                assert kernel == (pallas and platform == "tpu")


def test_shard_map_of_rows_at_their_phases():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    rows, sums, sign, offset = draw(6, (140, 2, 2, 40))

    def shard(rows, sums, sign):
        first = 70 * jax.lax.axis_index("data")
        block = jax.lax.dynamic_slice_in_dim(offset, first // 40, 3, axis=1)
        total = roll(40)(rows, sign, block, first % 40)
        return jax.lax.psum(total, "data"), BACK(sums, sign, block, first % 40)

    specs = dict(in_specs=(P("data"), P(), P(None, "data")), out_specs=(P(), P("data")))
    sharded = jax.jit(jax.shard_map(shard, mesh=mesh, **specs))
    export = jax.export.export(sharded, platforms=["tpu"])(rows, sums, sign)
    assert export.mlir_module().count("@tpu_custom_call") == 2
    got = sharded(rows, sums, sign)
    np.testing.assert_array_equal(got[0], definition(rows, sign, offset, 0, 40))
    np.testing.assert_array_equal(got[1], BACK(sums, sign, offset, 0))


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((40, 3, 2, 31), "float32"),  # a chunk meets too many blocks
        ((40, 130, 4, 2000), "float32"),  # the buckets do not fit
        ((40, 3, 1, 40), "float64"),
        ((40, 3, 1, 40), "float16"),
        ((40, 0, 1, 40), "float32"),
    ],
    ids=str,
)
def test_what_is_no_kernel(shape, dtype, x64, monkeypatch):
    monkeypatch.setattr(_rolled_tiles, "_TURNS", 10)
    rows, sums, *places = draw(7, shape, dtype)
    size = shape[3]
    plain = partial(block_roll, size=size)(rows, *places, 1)
    for fn, values in ((roll(size), rows), (BACK, sums)):
        text = jax.export.export(jax.jit(fn), platforms=["tpu"])(values, *places, 1)
        assert "tpu_custom_call" not in text.mlir_module()
    got = roll(size)(rows, *places, 1)
    assert got.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    np.testing.assert_array_equal(got, plain)


def test_float32_is_a_kernel_beside_float64(x64):
    rows, sums, sign, offset = draw(8, (300, 3, 2, 40))
    operands = sign, offset.astype(jnp.int64), jnp.int64(2)
    for fn, values in ((roll(40), rows), (BACK, sums)):
        text = jax.export.export(jax.jit(fn), platforms=["tpu"])(values, *operands)
        assert "tpu_custom_call" in text.mlir_module()
        assert fn(values, *operands).dtype == jnp.float32


def test_errors():
    rows, sums, *places = draw(9, (4, 1, 1, 2))
    match = r"implementation is 'triton'.*xla.*pallas"
    with pytest.raises(ValueError, match=match):
        block_roll(rows, *places, 0, size=2, implementation="triton")
    with pytest.raises(ValueError, match=match):
        block_roll_transpose(sums, *places, 0, implementation="triton")
