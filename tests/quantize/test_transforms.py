"""qat and fqt: any function, rounded operands, gradients quantized twice, unbiased."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods.quantize import Policy, bhq, fqt, psq, ptq, qat

from .unbiased import assert_unbiased

ACT, WEIGHT = ptq(4, zero_aligned=False), ptq(3)
NOISY = Policy(input_grad=bhq(4), weight_grad=psq(5, per="feature"))
X = jax.random.normal(jax.random.key(9), (8, 5))


def mlp_params(dtype=jnp.float32):
    k0, k1 = jax.random.split(jax.random.key(0))
    return {
        "w0": jax.random.normal(k0, (5, 6), dtype) / 2,
        "b0": jnp.full(6, 0.1, dtype),
        "w1": jax.random.normal(k1, (6, 3), dtype) / 2,
    }


def mlp(p, x, a=lambda x: x, w=lambda x: x):
    h = jax.nn.relu(a(x) @ w(p["w0"]) + p["b0"][None])
    return a(h) @ w(p["w1"])


def loss(p, x):
    return jnp.mean(mlp(p, x) ** 2)


def straight_through(q):
    return lambda x: x + jax.lax.stop_gradient(q(None, x) - x)


def branching():
    def fn(w, x):
        h = jax.lax.cond(x[0, 0] > 9, jnp.zeros_like, lambda v: v @ w, x)
        return jnp.mean(jax.jit(lambda h: (h @ w) ** 2)(h))

    return fn, jax.random.normal(jax.random.key(5), (5, 5)) / 2, X


def test_gradients_are_unbiased_through_branches_and_calls():
    fn, params, x = branching()
    draw = jax.grad(fqt(fn, NOISY), argnums=1)
    keys = jax.random.split(jax.random.key(6), 400)
    draws = jax.jit(lambda: jax.lax.map(lambda k: draw(k, params, x), keys))()
    assert_unbiased(draws, jax.grad(fn)(params, x))
    assert draws.var(0).sum() > 0


def test_qat_is_rounding_by_hand_with_a_straight_through_gradient():
    p = mlp_params()
    by_hand = lambda p, x: mlp(p, x, straight_through(ACT), straight_through(WEIGHT))  # noqa: E731
    quantized = qat(mlp, Policy(activation=ACT, weight=WEIGHT))
    np.testing.assert_allclose(quantized(p, X), by_hand(p, X), rtol=1e-5, atol=1e-6)
    got, want = (
        jax.grad(lambda p, f=f: jnp.sum(f(p, X) ** 2))(p) for f in (quantized, by_hand)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want
    )


def test_qat_has_forward_derivatives_too():
    p = mlp_params()
    f = lambda x: qat(mlp, Policy(weight=WEIGHT))(p, x)  # noqa: E731
    np.testing.assert_allclose(jax.jacfwd(f)(X), jax.jacrev(f)(X), rtol=1e-5, atol=1e-6)


def test_the_samples_are_rows_wherever_the_weight_stands():
    """One heavy sample: its row alone may be coarse, on the left and on the right."""
    policy = Policy(input_grad=psq(2))
    c = jnp.ones((6, 4)).at[0].mul(1000.0) * jnp.linspace(0.1, 1, 4)[None]
    left = lambda w, x: jnp.sum(c.T * (w.T @ x.T))  # noqa: E731
    right = lambda w, x: jnp.sum(c * (x @ w))  # noqa: E731
    w, x = jnp.eye(4), jnp.ones((6, 4))
    for fn in (left, right):
        g = jax.grad(fqt(fn, policy), argnums=2)(jax.random.key(0), w, x)
        assert jnp.abs(g - c)[1:].max() < 0.4  # a step of a light row is 0.3


def test_where_names_layers_and_unknown_names_list_the_known():
    p = mlp_params()
    policy = Policy(weight_grad=psq(2), where=[("w1",)])
    draw = jax.grad(fqt(loss, policy), argnums=1)
    a, b = (draw(jax.random.key(i), p, X) for i in range(2))
    assert jnp.abs(a["w1"] - b["w1"]).max() > 0
    np.testing.assert_array_equal(a["w0"], b["w0"])
    with pytest.raises(ValueError, match=r"\('w9',\), which is no parameter.*'w0'"):
        qat(loss, Policy(weight=WEIGHT, where=[("w9",)]))(p, X)


def test_one_key_one_gradient_under_jit_and_vmap():
    p, keys = mlp_params(), jax.random.split(jax.random.key(1), 3)
    draw = jax.grad(fqt(loss, NOISY), argnums=1)
    each = [jax.jit(draw)(k, p, X) for k in keys]
    together = jax.jit(jax.vmap(draw, (0, None, None)))(keys, p, X)
    for i, one in enumerate(each):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6),
            together,
            one,
        )
    assert jnp.abs(each[0]["w0"] - each[1]["w0"]).max() > 0


def test_under_shard_map_each_shard_draws_its_own():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    p = mlp_params()
    x = jnp.tile(X[:4], (4, 1))  # the same rows on every shard

    def local(key, p, x):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        p = jax.lax.pcast(p, "data", to="varying")
        return jax.tree.map(lambda g: g[None], jax.grad(fqt(loss, NOISY), 1)(key, p, x))

    run = jax.jit(
        jax.shard_map(
            local, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P("data")
        )
    )
    g = run(jax.random.key(2), p, x)["w0"]
    assert g.shape == (4, 5, 6)
    assert jnp.abs(g[0] - g[1]).max() > 0
    exact = jax.grad(loss)(p, X[:4])["w0"]
    np.testing.assert_allclose(g.mean(0), exact, atol=0.2 * jnp.abs(exact).max())


def test_compiles_once_for_all_keys():
    traces = []

    def counted(p, x):
        traces.append(1)
        return loss(p, x)

    run = jax.jit(jax.grad(fqt(counted, NOISY), argnums=1))
    for i in range(3):
        run(jax.random.key(i), mlp_params(), X)
    assert len(traces) == 1


def test_flags_reach_the_function_as_they_are():
    def fn(p, x, kind, *, train=False):
        return mlp(p, x) if kind == "mlp" and train else 0 * x

    got = qat(fn, Policy(weight=WEIGHT))(mlp_params(), X, "mlp", train=True)
    assert got.shape == (8, 3)


def test_a_missing_key_is_an_error():
    with pytest.raises(ValueError, match=r"key is None.*jax\.random\.key"):
        fqt(loss, NOISY)(None, mlp_params(), X)
    with pytest.raises(TypeError, match=r"jax\.random\.key\(0\)"):
        fqt(loss, NOISY)(0, mlp_params(), X)
    for transform in (fqt, qat):
        with pytest.raises(TypeError, match=r"policy is int 8; wanted a Policy, such"):
            transform(loss, 8)


def test_an_empty_operand_is_an_error_that_names_the_product():
    def fn(w, x):
        return jnp.sum(x @ w)

    message = r"dot_general of float32\[0,5\] and float32\[5,2\] at .*\.fn\).*empty"
    with pytest.raises(ValueError, match=message):
        qat(fn, Policy(activation=ACT))(jnp.ones((5, 2)), X[:0])
    # Where the product stays exact, so it may stay empty.
    assert qat(fn, Policy(input_grad=psq(2)))(jnp.ones((5, 2)), X[:0]) == 0


def test_products_that_stay_exact_are_told_with_their_line():
    def complex_product(w, x):
        return jnp.sum(jnp.abs((x + 0j) @ w))

    def grouped(w, x):
        return jax.lax.ragged_dot(x, w[None], jnp.array([8]))

    @jax.custom_vjp
    def owned(w, x):
        return x @ w

    owned.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: kept)

    def with_rule(w, x):
        return owned(w, x)

    tiny = lambda w, x: x.astype(jnp.float8_e5m2) @ w.astype(jnp.float8_e5m2)  # noqa: E731
    cases = {
        r"dot_general of complex64\[8,5\].*\.complex_product\)": complex_product,
        r"ragged_dot_general of float32\[8,5\].*\.grouped\)": grouped,
        r"dot_general inside a custom derivative at .*\.with_rule\)": with_rule,
        r"dot_general of float8_e5m2": tiny,
    }
    w = jnp.eye(5) / 3
    for message, fn in cases.items():
        with pytest.warns(UserWarning, match=message):
            got = qat(fn, Policy(weight=WEIGHT))(w, X)
        np.testing.assert_array_equal(got, fn(w, X))


@jax.custom_jvp
def squashed(w, x):
    return jax.nn.sigmoid(x @ w)


@squashed.defjvp
def _seven_fold(primals, tangents):
    y = squashed(*primals)
    return y, 7 * y * (1 - y) * (primals[1] @ tangents[0] + tangents[1] @ primals[0])


WRAPPED = {
    "alone": lambda w, x: jnp.sum(squashed(w, x) ** 2),
    "remat": jax.checkpoint(lambda w, x: jnp.sum(squashed(w, x) ** 2)),
    "scan": lambda w, x: jax.lax.scan(
        lambda s, _: (s + jnp.sum(squashed(w, x) ** 2), None), 0.0, None, 1
    )[0],
    "vmap": lambda w, x: jnp.sum(jax.vmap(squashed, (1, None), 1)(w, x) ** 2),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_custom_jvp_takes_rounded_operands_and_keeps_its_own_rule(name):
    """The rule, seven times the derivative, sees the value that the function has."""
    policy = Policy(WEIGHT, WEIGHT, NOISY.input_grad, NOISY.weight_grad)
    w = mlp_params()["w0"]
    y = jax.nn.sigmoid(WEIGHT(None, X) @ WEIGHT(None, w))
    value, grad = jax.jit(jax.value_and_grad(fqt(WRAPPED[name], policy), argnums=1))(
        jax.random.key(0), w, X
    )
    np.testing.assert_allclose(value, jnp.sum(y**2), rtol=1e-5)
    want = X.T @ (2 * y * 7 * y * (1 - y))
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5)
    forward = jax.jvp(lambda w: qat(WRAPPED[name], policy)(w, X), (w,), (w,))[1]
    np.testing.assert_allclose(forward, jnp.sum(want * w), rtol=1e-4)


def test_a_custom_jvp_with_integers_and_unperturbed_arguments():
    @jax.custom_jvp
    def counted(w, x, n):
        return x @ w, n + 1

    def rule(primals, tangents):
        out = counted(*primals)
        assert tangents[1].dtype == jnp.float32  # instantiated, as it asked for
        zero = np.zeros((), jax.dtypes.float0)
        return out, (primals[1] @ tangents[0] + tangents[1] @ primals[0], zero)

    counted.defjvp(rule)
    fn = lambda w, x, n: jnp.sum(counted(w, x, n)[0])  # noqa: E731
    w = mlp_params()["w0"]
    got = jax.grad(qat(fn, Policy(weight=WEIGHT)))(w, X, jnp.int32(3))
    np.testing.assert_allclose(got, X.T @ jnp.ones((8, 6)), rtol=1e-5)


def test_second_derivatives_pass_straight_through_too():
    p = {k: v for k, v in mlp_params().items() if k != "b0"}
    smooth = lambda p, x, a=lambda x: x, w=lambda x: x: jnp.mean(  # noqa: E731
        jnp.tanh(a(jnp.tanh(a(x) @ w(p["w0"]))) @ w(p["w1"])) ** 2
    )
    by_hand = lambda p, x: smooth(p, x, straight_through(ACT), straight_through(WEIGHT))  # noqa: E731
    policy = Policy(ACT, WEIGHT, NOISY.input_grad, NOISY.weight_grad)

    def penalty(f):
        squares = lambda p: jax.tree.map(lambda g: jnp.sum(g**2), jax.grad(f)(p))  # noqa: E731
        return jax.grad(lambda p: sum(jax.tree.leaves(squares(p))))(p)

    want = penalty(lambda p: by_hand(p, X))
    got = penalty(lambda p: qat(smooth, policy)(p, X))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), got, want
    )
    # With noise a square has a bias; what is linear in the gradient has none.
    v = jax.tree.map(jnp.cos, p)

    def along(f):
        dot = lambda p: jax.tree.map(jnp.vdot, jax.grad(f)(p), v)  # noqa: E731
        return jax.grad(lambda p: sum(jax.tree.leaves(dot(p))))(p)

    keys = jax.random.split(jax.random.key(1), 400)
    draws = jax.jit(jax.vmap(lambda k: along(lambda p: fqt(smooth, policy)(k, p, X))))(
        keys
    )
    assert_unbiased(draws, along(lambda p: by_hand(p, X)))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_dtypes_are_kept(dtype, x64):
    p = mlp_params(dtype)
    grads = jax.grad(fqt(loss, NOISY), argnums=1)(jax.random.key(0), p, X.astype(dtype))
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads.values())


ALL = Policy(ptq(8), ptq(8), psq(5), psq(5))


@pytest.mark.parametrize("packed", [False, True])
def test_a_product_that_is_one_number_has_an_exact_gradient(packed):
    w, x = jnp.arange(3.0), jnp.array([1.0, 2.0, 4.0])
    noisy = fqt(lambda w, x: (x @ w) ** 2, ALL, packed=packed)
    got = jax.jit(jax.grad(noisy, 1))(jax.random.key(0), w, x)
    want = jax.grad(qat(lambda w, x: (x @ w) ** 2, ALL))(w, x)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_arguments_are_found_by_the_names_and_places_of_the_function():
    def fn(p, x, *, key, train):
        assert train
        return loss(p, x) + jax.random.normal(key)

    params = mlp_params()
    noisy = fqt(fn, ALL)
    jitted = jax.jit(noisy, static_argnames="train")
    got = jitted(jax.random.key(0), params, X, key=jax.random.key(3), train=True)
    want = qat(fn, ALL)(params, X, key=jax.random.key(3), train=True)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert [*inspect.signature(fqt(loss, ALL)).parameters] == ["key", "p", "x"]


def test_a_dtype_is_no_array():
    params = mlp_params()
    for dtype in (jnp.float32, np.float32, np.dtype("float32")):
        low_bit = qat(lambda p, x, dtype: mlp(p, x).astype(dtype), ALL)
        assert low_bit(params, X, dtype=dtype).dtype == jnp.float32


def test_empty_products_of_jax_itself_stay():
    def powers(w, x):
        several = jax.lax.associative_scan(jnp.matmul, jnp.stack([w] * 3))
        return several[-1] @ x.T

    assert jnp.isfinite(qat(powers, ALL)(jnp.eye(5), X)).all()


def test_a_batch_of_keys_is_an_error():
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"key is .*a batch.*jax\.vmap"):
        fqt(loss, ALL)(keys, mlp_params(), X)
