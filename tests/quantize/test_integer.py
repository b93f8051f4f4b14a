"""Products in integers: equal to the simulation, with its derivatives, where fast."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.quantize import Policy, _integer, bhq, fqt, psq, ptq, qat

DATA, WEIGHT = ptq(8, zero_aligned=False), ptq(8)


def equation_of(fn, *operands):
    (found,) = jax.make_jaxpr(fn)(*operands).eqns
    return found


def normal(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(k, s) + 0.3 for k, s in zip(keys, shapes, strict=True)]


def dot(contracted, batch=((), ())):
    return partial(
        jax.lax.dot_general,
        dimension_numbers=(contracted, batch),
        precision=jax.lax.Precision.HIGHEST,
    )


def conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")


# product, shapes, quantizers
ROWS, COLUMNS = psq(5), psq(4, per="feature")
CASES = {
    "matrices": (dot(((1,), (0,))), [(5, 7), (7, 3)], (DATA, WEIGHT)),
    "one entry": (dot(((1,), (0,))), [(1, 1), (1, 1)], (DATA, WEIGHT)),
    "vectors": (dot(((0,), (0,))), [(9,), (9,)], (DATA, WEIGHT)),
    "a row": (dot(((1,), (0,))), [(1, 33), (33, 1)], (ptq(2), ptq(3))),
    "rows": (dot(((1,), (0,))), [(5, 7), (7, 3)], (ROWS, WEIGHT)),
    "rows and columns": (dot(((1,), (0,))), [(5, 7), (7, 3)], (ROWS, COLUMNS)),
    "aligned": (
        dot(((1,), (0,))),
        [(5, 7), (7, 3)],
        (psq(8, zero_aligned=True), COLUMNS),
    ),
    "gradient of a weight": (dot(((0,), (0,))), [(5, 7), (5, 3)], (COLUMNS, COLUMNS)),
    "tokens": (dot(((2,), (0,))), [(2, 5, 7), (7, 3)], (ROWS, WEIGHT)),
    "two free axes each": (
        dot(((1,), (2,))),
        [(2, 7, 4), (3, 5, 7)],
        (ROWS, psq(6)),
    ),
    "heads": (
        dot(((3,), (1,)), ((0, 2), (0, 3))),
        [(2, 5, 3, 7), (2, 7, 4, 3)],
        (ROWS, psq(7)),
    ),
}


def simulation(product, quantizers):
    def fn(lhs, rhs):
        return product(
            *(
                x + jax.lax.stop_gradient(q(None, x) - x)
                for q, x in zip(quantizers, (lhs, rhs), strict=True)
            )
        )

    return fn


@pytest.mark.parametrize("name", CASES)
def test_integers_equal_the_simulation(name):
    product, shapes, quantizers = CASES[name]
    operands = normal(0, *shapes)
    form = _integer.integer_form(equation_of(product, *operands), quantizers)
    rounded = [q(None, x) for q, x in zip(quantizers, operands, strict=True)]
    got, want = jax.jit(form)(*operands), product(*rounded)
    assert got.shape == want.shape and got.dtype == want.dtype
    # Rounding of a sum of the largest terms there can be.
    size = jnp.abs(product(*map(jnp.abs, rounded))).max()
    np.testing.assert_allclose(got, want, atol=2e-6 * size)


@pytest.mark.parametrize("name", ["rows", "heads"])
def test_vmap(name):
    product, shapes, quantizers = CASES[name]
    operands = normal(6, *[(3, *shape) for shape in shapes])
    equation = equation_of(product, *(x[0] for x in operands))
    form = _integer.integer_form(equation, quantizers)
    behind = jnp.moveaxis(operands[0], 0, -1)
    many = jax.jit(jax.vmap(form, (-1, 0)))(behind, operands[1])
    for i in range(3):
        want = form(*(x[i] for x in operands))
        np.testing.assert_allclose(many[i], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_small_results_of_large_grids_are_exact(offset):
    """One outlier sets a coarse grid; terms of its size must not drown the others."""
    x = jnp.linspace(0, 1, 64).at[0].set(100.0)[None] + offset
    w = jnp.eye(64)[:, ::-1] * 50
    form = _integer.integer_form(equation_of(jnp.matmul, x, w), (DATA, WEIGHT))
    want = np.asarray(DATA(None, x), np.float64) @ np.asarray(WEIGHT(None, w))
    np.testing.assert_allclose(form(x, w), want, rtol=1e-6)


def test_zeros_stay_zeros():
    x, w = jnp.zeros((3, 4)), jnp.ones((4, 2))
    form = _integer.integer_form(equation_of(jnp.matmul, x, w), (DATA, WEIGHT))
    np.testing.assert_array_equal(form(x, w), jnp.zeros((3, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_reaches_what_shares_its_grid(bad):
    x, w = normal(1, (4, 3), (3, 2))
    x = x.at[1, 2].set(bad)
    for q, spoilt in ((ROWS, [1]), (DATA, [0, 1, 2, 3])):
        form = _integer.integer_form(equation_of(jnp.matmul, x, w), (q, WEIGHT))
        np.testing.assert_array_equal(
            np.isnan(form(x, w)).all(1), np.isin(np.arange(4), spoilt)
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept(dtype):
    x, w = (v.astype(dtype) for v in normal(2, (4, 6), (6, 3)))
    form = _integer.integer_form(equation_of(jnp.matmul, x, w), (DATA, WEIGHT))
    got = form(x, w)
    assert got.dtype == jnp.dtype(dtype)
    want = jnp.matmul(DATA(None, x), WEIGHT(None, w))
    np.testing.assert_allclose(
        got.astype("float32"), want.astype("float32"), rtol=0.03, atol=0.03
    )


X, W = jnp.ones((4, 6)), jnp.ones((6, 3))
KERNEL = jnp.ones((4, 3, 3, 3))
WIDE = jnp.ones((1, 40_000))
REFUSED = {
    "exact operand": (jnp.matmul, X, W, (DATA, None)),
    "summed rows": (jnp.matmul, X, W, (DATA, psq(8))),
    "summed columns": (jnp.matmul, X, W, (psq(8, per="feature"), WEIGHT)),
    "mixed rows": (jnp.matmul, X, W, (bhq(8), WEIGHT)),
    "more than 32 bits": (jnp.matmul, WIDE, WIDE.T, (DATA, WEIGHT)),
    "convolution": (conv, jnp.ones((2, 3, 5, 5)), KERNEL, (DATA, WEIGHT)),
    "empty": (jnp.matmul, X[:0], W, (DATA, WEIGHT)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_else_is_left_to_the_simulation(name):
    product, lhs, rhs, quantizers = REFUSED[name]
    equation = equation_of(product, lhs, rhs)
    assert _integer.integer_form(equation, quantizers) is None
    assert _integer.integer_product(equation, quantizers, product) is product


def test_float64_is_left_to_the_simulation(x64):
    x, w = (jnp.ones(s, "float64") for s in ((4, 6), (6, 3)))
    assert _integer.integer_form(equation_of(jnp.matmul, x, w), (DATA, WEIGHT)) is None


@pytest.fixture
def also_on_cpu(monkeypatch):
    monkeypatch.setattr(_integer, "_PLATFORMS", ("cpu",))


@pytest.mark.parametrize("name", ["rows", "heads"])
def test_derivatives_are_straight_through(name, also_on_cpu):
    product, shapes, quantizers = CASES[name]
    operands = normal(3, *shapes)
    simulated = simulation(product, quantizers)
    fn = _integer.integer_product(
        equation_of(product, *operands), quantizers, simulated
    )
    text = jax.jit(fn).lower(*operands).as_text()
    assert "xi8>" in text

    def loss(fn):
        return lambda *x: jnp.sum(jnp.sin(fn(*x)))

    got, want = (
        jax.jit(jax.value_and_grad(loss(f), (0, 1)))(*operands) for f in (fn, simulated)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, want
    )
    directions = normal(4, *shapes)

    def second(f):
        along = jax.grad(lambda x: loss(f)(x, operands[1]))
        return jax.jit(lambda x, t: jax.jvp(along, (x,), (t,))[1])

    np.testing.assert_allclose(
        second(fn)(operands[0], directions[0]),
        second(simulated)(operands[0], directions[0]),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", ["matrices", "heads"])
def test_where_it_runs(name):
    product, shapes, quantizers = CASES[name]
    operands = normal(5, *shapes)
    fn = _integer.integer_product(
        equation_of(product, *operands), quantizers, simulation(product, quantizers)
    )
    found = {}
    for platform in ("tpu", "cuda", "cpu"):
        export = jax.export.export(jax.jit(fn), platforms=[platform])
        lines = export(*operands).mlir_module().splitlines()
        kinds = [line for line in lines if "stablehlo.dot_general" in line]
        assert kinds
        found[platform] = any("xi8>" in line for line in kinds)
    assert found == {"tpu": True, "cuda": True, "cpu": False}


@pytest.mark.parametrize("packed", [False, True])
def test_networks_take_integers_where_asked_to(packed, also_on_cpu):
    policy = Policy(activation=DATA, weight=WEIGHT, input_grad=bhq(4))
    params = dict(zip("vw", normal(6, (6, 5), (5, 2)), strict=True))
    (x,) = normal(7, (4, 6))

    def loss(p, x):
        return jnp.sum(jnp.tanh(x @ p["v"]) @ p["w"])

    def found(**options):
        low_bit = qat(loss, policy, **options)
        noisy = fqt(loss, policy, **options)
        run = jax.jit(lambda key, p: (low_bit(p, x), jax.grad(noisy, 1)(key, p, x)))
        assert ("xi8>" in run.lower(jax.random.key(8), params).as_text()) == bool(
            options.get("integer")
        )
        return run(jax.random.key(8), params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found(integer=True, packed=packed),
        found(packed=packed),
    )
