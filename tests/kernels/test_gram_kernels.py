"""Gram products: the definition in numpy, the tiles, the kernel, and their transforms.

The kernel runs in interpret mode here; for a TPU it is lowered, not run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.kernels import _gram_products, gram_products

FORMS = {
    "default": gram_products,
    "pallas": partial(_gram_products._fused, interpret=True),
}
# (n, T, m, S): alone, in one tile, rows that are cut, examples that are cut, and both.
SHAPES = [(1, 1, 1, 1), (3, 5, 4, 7), (2, 40, 3, 70), (20, 3, 300, 2), (11, 9, 7, 33)]
KERNEL = dict(implementation="pallas")


@pytest.fixture
def small_tiles(monkeypatch):
    for name, size in (("_TILE", 8), ("_ROWS", 16), ("_COLUMNS", 32)):
        monkeypatch.setattr(_gram_products, name, size)


def definition(*factors):
    return np.einsum("itp,itq,jsp,jsq->ij", *factors, optimize=True)


def factors(seed, n, rows, m, columns, p=3, q=4):
    """Small whole numbers: every sum is exact in every dtype."""
    draw = np.random.default_rng(seed).integers
    shapes = (n, rows, p), (n, rows, q), (m, columns, p), (m, columns, q)
    return [draw(-3, 4, shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", FORMS)
def test_products_are_the_definition(implementation, shape, small_tiles):
    given = factors(0, *shape)
    got = FORMS[implementation](*map(jnp.asarray, given))
    np.testing.assert_array_equal(got, definition(*given))


@pytest.mark.parametrize("sides", ["both", "left", "right"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_are_rows_of_the_identity(shape, sides, small_tiles):
    n, rows, m, columns = shape
    left, right, other_left, other_right = factors(1, *shape, p=6)
    draw = np.random.default_rng(2).integers
    one, other = draw(0, 6, (n, rows)), draw(0, 6, (m, columns))
    given = [left, right, other_left, other_right]
    spelled = list(given)
    if sides != "right":
        given[0], spelled[0] = one, np.eye(6)[one]
    if sides != "left":
        given[2], spelled[2] = other, np.eye(6)[other]
    got = gram_products(*map(jnp.asarray, given))
    np.testing.assert_array_equal(got, definition(*spelled))


@settings(max_examples=6, deadline=None)  # each shape compiles
@given(st.lists(st.integers(1, 9), min_size=6, max_size=6), st.integers(0, 2**20))
def test_any_shape_and_any_tile(sizes, seed):
    given = factors(seed, *sizes)
    for tile in (2, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_gram_products, "_TILE", tile)
            got = jax.jit(lambda *x: gram_products(*x))(*map(jnp.asarray, given))
        np.testing.assert_array_equal(got, definition(*given))


def test_of_factors_with_themselves_it_is_a_gram_matrix():
    rng = np.random.default_rng(3)
    x, g = (jnp.asarray(rng.normal(size=(9, 4, d)), jnp.float32) for d in (3, 5))
    gram = np.asarray(gram_products(x, g, x, g), np.float64)
    np.testing.assert_allclose(gram, gram.T, rtol=1e-5)
    assert np.linalg.eigvalsh(gram)[0] > -1e-5 * np.abs(gram).max()
    sums = np.einsum("itp,itq->ipq", x, g)
    np.testing.assert_allclose(np.diag(gram), (sums**2).sum((1, 2)), rtol=1e-5)


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars)
        for body in jaxprs_in_params(equation.params):
            yield from sizes(getattr(body, "jaxpr", body))


@pytest.mark.parametrize("shape", [(64, 64, 64, 64), (3, 5000, 2, 5000)], ids=str)
@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_no_matrix_of_all_rows_exists(implementation, shape, monkeypatch):
    # On accelerators tiles are 16 times as large, as the matrix would have to be here.
    monkeypatch.setattr(_gram_products, "_LARGE_TILE", _gram_products._TILE)
    fn = partial(gram_products, implementation=implementation)
    given = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in factors(0, *shape)]
    largest = max(sizes(jax.make_jaxpr(fn)(*given).jaxpr))
    assert largest <= max(_gram_products._TILE**2, *(2 * x.size for x in given))
    assert np.prod(shape) >= 16 * largest


@pytest.mark.parametrize("implementation", FORMS)
def test_half_precision_adds_in_float32(implementation):
    ones = jnp.ones((1, 300, 2), "bfloat16")  # bfloat16 would stop counting at 256
    got = FORMS[implementation](ones, ones, ones, ones)
    assert got.dtype == jnp.float32
    assert float(got[0, 0]) == 300 * 300 * 4


def test_factors_of_several_precisions_and_of_no_columns():
    given = [jnp.asarray(x) for x in factors(9, 2, 3, 4, 5)]
    got = gram_products(*given[:2], *(x.astype("bfloat16") for x in given[2:]))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, definition(*given))
    none = [x[..., :0] for x in given]
    np.testing.assert_array_equal(gram_products(*none), np.zeros((2, 4)))


def test_gradients_are_those_of_the_definition(small_tiles):
    given = [jnp.asarray(x) for x in factors(4, 5, 6, 3, 20)]

    def loss(fn, *x):
        return jnp.sin(fn(*x) / 100).sum()

    every = (0, 1, 2, 3)

    def slope(fn):
        return jax.jit(jax.grad(partial(loss, fn), every))(*given)

    want = slope(lambda *x: jnp.einsum("itp,itq,jsp,jsq->ij", *x))
    for how in ({}, KERNEL):
        got = slope(partial(gram_products, **how))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    # The factors of a look-up that are numbers have none.
    numbers = jnp.zeros((5, 6), int)
    along = jax.grad(lambda g: gram_products(numbers, g, *given[2:]).sum())(given[1])
    want = np.einsum("js,jsq->q", given[2][..., 0], given[3])
    np.testing.assert_allclose(along[0, 0], want, rtol=1e-5)


@pytest.mark.parametrize("axes", [(0, 0, 0, 0), (0, 0, None, None), (None, 0, 0, None)])
def test_vmap(axes, small_tiles):
    shapes = (4, 5, 3), (4, 5, 2), (6, 7, 3), (6, 7, 2)
    draw = np.random.default_rng(5).integers
    given = [
        draw(-3, 4, shape if axis is None else (3, *shape)).astype(np.float32)
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    want = [
        definition(
            *(x if a is None else x[i] for x, a in zip(given, axes, strict=True))
        )
        for i in range(3)
    ]
    behind = [None if a is None else -1 for a in axes]
    moved = [
        x if a is None else np.moveaxis(x, 0, -1)
        for x, a in zip(given, axes, strict=True)
    ]
    for how in ({}, KERNEL):
        fn = partial(gram_products, **how)
        np.testing.assert_array_equal(jax.jit(jax.vmap(fn, axes))(*given), want)
        np.testing.assert_array_equal(jax.jit(jax.vmap(fn, behind))(*moved), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_lowering_for_each_platform(dtype, batch):
    given = [
        jax.ShapeDtypeStruct((*batch, *x.shape), dtype)
        for x in factors(6, 20, 40, 150, 30, p=100, q=130)
    ]

    def lowered(implementation, platform):
        fn = partial(gram_products, implementation=implementation)
        fn = jax.jit(jax.vmap(fn) if batch else fn)
        return jax.export.export(fn, platforms=[platform])(*given).mlir_module()

    found = {
        p: "tpu_custom_call" in lowered("pallas", p) for p in ("tpu", "cuda", "cpu")
    }
    assert found == {"tpu": True, "cuda": False, "cpu": False}
    assert "tpu_custom_call" not in lowered("xla", "tpu")


def test_shard_map():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    given = [jnp.asarray(x) for x in factors(7, 8, 20, 6, 30)]
    fn = partial(gram_products, **KERNEL)
    specs = P("data"), P("data"), P(), P()
    sharded = jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P("data")))
    text = jax.export.export(sharded, platforms=["tpu"])(*given).mlir_module()
    assert "tpu_custom_call" in text
    np.testing.assert_array_equal(sharded(*given), definition(*given))


def test_what_is_no_kernel(x64):
    given = [jnp.asarray(x, "float64") for x in factors(8, 4, 30, 5, 20)]
    got = gram_products(*given, **KERNEL)
    assert got.dtype == jnp.float64
    np.testing.assert_array_equal(got, definition(*given))
    numbers = jnp.zeros((4, 30), int)
    got = gram_products(numbers, given[1], numbers, given[1], **KERNEL)
    spelled = np.eye(1)[np.zeros((4, 30), int)]
    want = definition(spelled, given[1], spelled, given[1])
    np.testing.assert_array_equal(got, want)
    for n, rows in ((0, 3), (2, 0)):
        none = [jnp.zeros((n, rows, d)) for d in (2, 3)]
        got = gram_products(*none, *none, **KERNEL)
        np.testing.assert_array_equal(got, np.zeros((n, n)))


def test_errors():
    x = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        gram_products(x, x, x, x, implementation="triton")
    for wrong in ((x, x[:1], x, x), (x, x, x, x[..., :2]), (x[..., :2], x, x, x)):
        with pytest.raises(
            ValueError, match=r"float32\[2,3,4\].*wanted left \(n, T, p\)"
        ):
            gram_products(*wrong)
    with pytest.raises(ValueError, match="whole numbers"):
        gram_products(jnp.zeros((2, 3, 1), int), x, x, x)
