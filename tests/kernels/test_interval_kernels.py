"""Steps of bounds: definitions in numpy, the kernels, and what transforms make of them.

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
    _interval_matmul,
    _signed_slopes,
    interval_matmul,
    signed_slopes,
)

SLOPES = {
    "default": lambda part, *x: signed_slopes(*x, part=part),
    "pallas": lambda part, *x: _signed_slopes._fused(part, *x, interpret=True),
}
PRODUCTS = {
    "default": interval_matmul,
    "pallas": partial(_interval_matmul._fused, interpret=True),
}
RAGGED = [
    (1, 7),
    (5, 8),
    (8, 5),
    (19, 17),
]  # blocks of 8 x 8: alone, full, sticking out


@pytest.fixture
def small_blocks(monkeypatch):
    for name in ("_ROWS", "_COLUMNS"):
        monkeypatch.setattr(_signed_slopes, name, 8)
    for name in ("_ROWS", "_COLUMNS", "_TERMS"):
        monkeypatch.setattr(_interval_matmul, name, 8)


def whole(seed, *shapes):
    """Small whole numbers: every sum is exact in every dtype."""
    r = np.random.default_rng(seed)
    return [r.integers(-4, 5, shape).astype(np.float32) for shape in shapes]


def normal(seed, *shapes):
    r = np.random.default_rng(seed)
    return [r.standard_normal(shape).astype(np.float32) for shape in shapes]


def lines_between(rows, lower_slope, lower_bias, upper_slope, upper_bias):
    """Each coefficient takes the line of its own sign."""
    slope = np.where(rows > 0, lower_slope, upper_slope)
    bias = np.where(rows > 0, lower_bias, upper_bias)
    return rows * slope, (rows * bias).sum(1)


@pytest.mark.parametrize("shape", RAGGED, ids=str)
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("implementation", SLOPES)
def test_a_coefficient_takes_the_line_of_its_sign(
    implementation, part, shape, small_blocks
):
    rows, *lines = whole(0, shape, *[shape[1:]] * 4)
    below, base, above, top = lines
    halves = (below + above, below - above, base + top, base - top)
    got = SLOPES[implementation](part, rows, *(half / 2 for half in halves))
    want = lines_between(np.concatenate([rows, -rows]) if part else rows, *lines)
    for found, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", RAGGED, ids=str)
@pytest.mark.parametrize("implementation", PRODUCTS)
def test_a_box_through_a_matrix(implementation, shape, small_blocks):
    center, radius, weights = whole(1, shape, shape, (shape[1], 11))
    got = PRODUCTS[implementation](center, abs(radius), weights)
    np.testing.assert_array_equal(got[0], center @ weights)
    np.testing.assert_array_equal(got[1], abs(radius) @ abs(weights))


def test_the_image_of_a_box_is_its_tightest_interval():
    center, radius, weights = normal(2, (1, 4), (1, 4), (4, 3))
    middle, spread = interval_matmul(center, abs(radius), weights)
    corners = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
    images = (center + corners * abs(radius)) @ weights
    np.testing.assert_allclose((middle + spread)[0], images.max(0), rtol=1e-5)
    np.testing.assert_allclose((middle - spread)[0], images.min(0), rtol=1e-5)


def test_half_precision_adds_in_float32(small_blocks):
    n = 600  # bfloat16 would stop counting at 256
    ones, zero = jnp.ones((1, n), "bfloat16"), jnp.zeros(n, "bfloat16")
    new, bias = SLOPES["pallas"](False, ones, zero + 1, zero, zero + 1, zero)
    middle, spread = PRODUCTS["pallas"](ones, ones, ones.T)
    assert {x.dtype for x in (new, bias, middle, spread)} == {jnp.dtype("bfloat16")}
    assert float(bias[0]) == float(middle[0, 0]) == float(spread[0, 0]) == n


@pytest.mark.parametrize("part", [False, True])
def test_gradients_are_those_of_the_definition(part):
    rows, *lines = normal(3, (3, 5), *[(5,)] * 4)
    rows[0, 0] = 0.0

    def loss(*operands, **options):
        new, bias = signed_slopes(*operands, part=part, **options)
        return jnp.sin(new).sum() + jnp.cos(bias).sum()

    every = tuple(range(5))
    want = jax.grad(loss, every)(rows, *lines)
    got = jax.grad(partial(loss, implementation="pallas"), every)(rows, *lines)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    # By hand, with the derivative of |v| at 0 that jnp.abs has.
    sign = np.asarray(jax.vmap(jax.vmap(jax.grad(jnp.abs)))(rows))
    want_rows = np.zeros_like(rows)
    for way in (1, -1) if part else (1,):
        slope = way * lines[0] + sign * lines[1]
        base = way * lines[2] + sign * lines[3]
        new, bias = signed_slopes(way * rows, *lines)
        want_rows += np.cos(new) * slope - np.sin(bias)[:, None] * base
    np.testing.assert_allclose(want[0], want_rows, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_product():
    operands = normal(4, (2, 3), (2, 3), (3, 4))

    def loss(*operands, **options):
        middle, spread = interval_matmul(*operands, **options)
        return jnp.sin(middle + spread).sum()

    want = jax.grad(loss, (0, 1, 2))(*operands)
    got = jax.grad(partial(loss, implementation="pallas"), (0, 1, 2))(*operands)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_equal_in_any_batch(fn, want, operands, axes):
    """`vmap`, also from axes behind, against one call an example."""
    for given in ([a for a in axes], [None if a is None else -1 for a in axes]):
        moved = [
            x if a is None else np.moveaxis(x, 0, a)
            for x, a in zip(operands, given, strict=True)
        ]
        got = jax.jit(jax.vmap(fn, given))(*moved)
        for i in range(len(got[0])):
            one = (
                x if a is None else x[i] for x, a in zip(operands, axes, strict=True)
            )
            for a, b in zip(got, want(*one), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_vmap_of_slopes(shared):
    rows, *lines = normal(5, (3, 8, 6), *[(3, 6)] * 4)
    operands = [rows[0] if shared else rows, *lines]
    axes = [None if shared else 0, 0, 0, 0, 0]
    fn = partial(signed_slopes, part=True, implementation="pallas")
    assert_equal_in_any_batch(fn, partial(signed_slopes, part=True), operands, axes)


@pytest.mark.parametrize("axes", [(0, 0, None), (0, None, None), (0, None, 0)])
def test_vmap_of_products(axes):
    shapes = [(4, 5), (4, 5), (5, 6)]
    shapes = [s if a is None else (3, *s) for s, a in zip(shapes, axes, strict=True)]
    fn = partial(interval_matmul, implementation="pallas")
    assert_equal_in_any_batch(fn, interval_matmul, normal(6, *shapes), axes)


def test_boxes_that_share_weights_are_rows_of_one_product():
    center, radius, weights = normal(7, (6, 1, 5), (6, 1, 5), (5, 4))
    fn = partial(interval_matmul, implementation="pallas")
    many = jax.vmap(jax.vmap(fn, (0, 0, None)), (0, 0, None))
    boxes = [x.reshape(2, 3, 1, 5) for x in (center, radius)]
    export = jax.export.export(jax.jit(many), platforms=["cpu"])
    text = export(*boxes, weights).mlir_module()
    assert text.count("(tensor<6x5xf32>, tensor<5x4xf32>)") == text.count(
        "stablehlo.dot_general"
    )
    assert "stablehlo.dot_general" in text


def modules(fn, *args):
    """What a function lowers to on each platform."""
    exports = {p: jax.export.export(jax.jit(fn), platforms=[p]) for p in PLATFORMS}
    return {p: make(*args).mlir_module() for p, make in exports.items()}


PLATFORMS = ("tpu", "cuda", "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_lowering_for_each_platform(dtype, batch):
    rows, *lines = (
        jnp.asarray(x, dtype) for x in normal(8, (16, 200), *[(*batch, 200)] * 4)
    )
    center, weights = jnp.ones((*batch, 16, 200), dtype), jnp.ones((200, 130), dtype)

    def slopes(implementation):
        fn = partial(signed_slopes, part=True, implementation=implementation)
        return jax.vmap(fn, (None, 0, 0, 0, 0)) if batch else fn

    def product(implementation):
        fn = partial(interval_matmul, implementation=implementation)
        return jax.vmap(fn, (0, 0, None)) if batch else fn

    for make, operands in (
        (slopes, (rows, *lines)),
        (product, (center, center, weights)),
    ):
        found = modules(make("pallas"), *operands)
        assert {p: "tpu_custom_call" in text for p, text in found.items()} == {
            "tpu": True,
            "cuda": False,
            "cpu": False,
        }
        plain = jax.export.export(jax.jit(make("xla")), platforms=["tpu"])(*operands)
        assert "tpu_custom_call" not in plain.mlir_module()


def test_shard_map_of_shared_rows_and_of_shared_weights():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    rows, *lines = normal(9, (8, 6), *[(2, 6)] * 4)
    center, radius, weights = normal(10, (4, 6), (4, 6), (6, 3))
    slopes = jax.vmap(
        partial(signed_slopes, part=True, implementation="pallas"), (None, 0, 0, 0, 0)
    )
    product = partial(interval_matmul, implementation="pallas")
    for fn, operands, shared in (
        (slopes, (rows, *lines), 0),
        (product, (center, radius, weights), 2),
    ):
        specs = tuple(P() if i == shared else P("data") for i in range(len(operands)))
        sharded = jax.shard_map(
            fn, mesh=mesh, in_specs=specs, out_specs=(P("data"), P("data"))
        )
        export = jax.export.export(jax.jit(sharded), platforms=["tpu"])
        assert "tpu_custom_call" in export(*operands).mlir_module()
        got, want = jax.jit(sharded)(*operands), fn(*operands)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_float64_and_empty_operands_are_no_kernels(x64):
    rows, *lines = (jnp.asarray(x, "float64") for x in normal(11, (8, 6), *[(6,)] * 4))
    kernel = dict(implementation="pallas")
    assert signed_slopes(rows, *lines, **kernel)[0].dtype == jnp.float64
    assert interval_matmul(rows, rows, rows.T, **kernel)[1].dtype == jnp.float64
    none = jnp.zeros((0, 6), jnp.float32)
    halves = [x.astype("float32") for x in lines]
    assert signed_slopes(none, *halves, part=True, **kernel)[0].shape == (0, 6)
    assert interval_matmul(none, none, none.T, **kernel)[0].shape == (0, 0)


def test_errors():
    box = jnp.ones((1, 2))
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        interval_matmul(box, box, box.T, implementation="triton")
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        signed_slopes(box, *[box[0]] * 4, implementation="triton")
