"""Split dense layers by hand: pairs, and the rows of a group by three schemes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.shard import column_dense, modulo_layer, row_dense, wire

N = 8
BOTH = P(("data", "model"))
WEIGHTS = (P(None, "model"), P("model"), P("model", None), P())


def grid(members):
    devices = np.array(jax.devices()).reshape(N // members, members)
    return Mesh(devices, ("data", "model"))


def arrays(rows=N * 8):
    rng = np.random.default_rng(0)
    shapes = ((rows, 6), (6, 16), (16,), (16, 5), (5,))
    return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def pair(rows, k0, b0, k1, b1):
    return row_dense(jnp.tanh(column_dense(rows, k0, b0)), k1, b1, "model")


def plain(x, k0, b0, k1, b1):
    return jnp.tanh(x @ k0 + b0[None]) @ k1 + b1[None]


def by_modulo(members, scheme, check_vma=True):
    def own(x, *weights):
        return modulo_layer(lambda r: pair(r, *weights), x, "model", scheme=scheme)

    return jax.shard_map(
        own,
        mesh=grid(members),
        in_specs=(BOTH, *WEIGHTS),
        out_specs=BOTH,
        check_vma=check_vma,
    )


@pytest.mark.parametrize("check_vma", [True, False])
def test_pair_is_a_dense_pair(check_vma):
    args = arrays()
    fn = jax.shard_map(
        pair,
        mesh=grid(4),
        in_specs=(P("data"), *WEIGHTS),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    both = [
        jax.jit(jax.value_and_grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), range(5)))
        for f in (fn, plain)
    ]
    (got, grads), (want, wanted) = both[0](*args), both[1](*args)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for g, w in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_bias_may_be_absent_and_axes_may_lead():
    x, k0, _, k1, _ = arrays()
    x = x.reshape(4, 2, 8, 6)
    np.testing.assert_array_equal(column_dense(x, k0), x @ k0)
    got = jax.vmap(lambda w: row_dense(x @ k0, w, None, "i"), axis_name="i")(k1[None])
    np.testing.assert_allclose(got[0], x @ k0 @ k1, rtol=1e-5)


@pytest.mark.parametrize(
    ("members", "scheme", "check_vma"),
    [
        *((2, scheme, True) for scheme in "ABC"),
        *((4, scheme, False) for scheme in "ABC"),
        (1, "C", True),
        (8, "C", True),
    ],
)
def test_schemes_agree_with_one_device(members, scheme, check_vma):
    args = arrays()
    fn = by_modulo(members, scheme, check_vma)
    got, back = jax.vjp(jax.jit(fn), *args)
    want, wanted = jax.vjp(plain, *args)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    weight = jnp.cos(jnp.arange(want.size, dtype=jnp.float32)).reshape(want.shape)
    for g, w in zip(back(weight), wanted(weight), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-5)


@pytest.mark.optimized
@pytest.mark.parametrize(("scheme", "times"), [("A", 1), ("C", 1), ("B", 2)])
def test_bytes_of_a_scheme(scheme, times):
    members, rows = 4, 8
    x, *weights = arrays()
    gathered = times * (members - 1) * rows * x.shape[1] * 4
    reduced = 2 * (members - 1) * rows * weights[-1].size * 4
    assert wire(by_modulo(members, scheme))(x, *weights).total == gathered + reduced


@pytest.mark.optimized
@pytest.mark.parametrize("scheme", "BC")
def test_gradients_of_kernels_are_summed_once(scheme):
    def sent(check_vma):
        fn = by_modulo(4, scheme, check_vma)
        gradient = jax.grad(lambda *a: jnp.sin(fn(*a)).sum(), range(5))
        return wire(gradient)(*arrays()).total

    # Unchecked, the sum over "data" comes after the rounds; the last bias, which all
    # have alike, is then summed over all devices at once.
    assert 0 <= sent(False) - sent(True) < arrays()[-1].nbytes


@pytest.mark.optimized
@pytest.mark.parametrize("scheme", "BC")
def test_a_rectifier_between_layers_keeps_the_sum_outside(scheme):
    def sent(between):
        def own(x, kernel, last):
            def fn(rows):
                hidden = between(column_dense(rows, kernel))
                return row_dense(hidden, last, None, "model")

            return modulo_layer(fn, x, "model", scheme=scheme)

        specs = (BOTH, P(None, "model"), P("model"))
        run = jax.shard_map(own, mesh=grid(2), in_specs=specs, out_specs=BOTH)
        gradient = jax.grad(lambda *a: jnp.sin(run(*a)).sum(), (1, 2))
        return wire(gradient)(jnp.ones((16, 6)), jnp.ones((6, 6)), jnp.ones((6, 6)))

    # `relu` has a derivative of its own, and casts a constant in it.
    assert sent(jax.nn.relu).total == sent(jnp.tanh).total


@jax.custom_jvp
def product(rows, kernel):
    return rows @ kernel


@product.defjvp
def _(primals, tangents):
    (rows, kernel), (d_rows, d_kernel) = primals, tangents
    return rows @ kernel, d_rows @ kernel + rows @ d_kernel


@pytest.mark.parametrize("scheme", "BC")
@pytest.mark.parametrize("kind", ["derivative of its own", "loop", "whole numbers"])
def test_constants_of_every_kind(scheme, kind):
    def layer(rows, kernel, factor):
        if kind == "loop":
            step = lambda r, k: (jnp.tanh(r @ k), None)  # noqa: E731
            return jax.lax.scan(step, rows, jnp.stack([kernel, 2 * kernel]))[0]
        if kind == "whole numbers":
            return jax.jit(jnp.matmul)(rows, kernel) * factor[None]
        return product(rows, kernel)

    x, kernel = jnp.sin(jnp.arange(96.0)).reshape(16, 6), jnp.cos(jnp.arange(36.0))
    kernel, factor = kernel.reshape(6, 6), jnp.arange(6)

    def own(x, kernel, factor):
        fn = lambda rows: layer(rows, kernel, factor)  # noqa: E731
        return modulo_layer(fn, x, "model", scheme=scheme)

    run = jax.shard_map(own, mesh=grid(2), in_specs=(BOTH, P(), P()), out_specs=BOTH)
    got, back = jax.vjp(jax.jit(lambda x, k: run(x, k, factor)), x, kernel)
    want, wanted = jax.vjp(lambda x, k: layer(x, k, factor), x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for g, w in zip(back(got), wanted(got), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-4)


@pytest.mark.optimized
@pytest.mark.parametrize("kind", ["column", "row"])
def test_a_bias_sends_its_own_gradient_not_one_a_row(kind):
    x, k0, b0, k1, b1 = arrays()
    if kind == "column":
        layer, weights = column_dense, (k0, b0)
        specs, out = (P("data"), P(None, "model"), P("model")), P("data", "model")
    else:
        layer, weights = lambda *a: row_dense(*a, "model"), (k1, b1)
        x = jnp.tanh(x @ k0)
        specs, out = (P("data", "model"), P("model"), P()), P("data")
    fn = jax.shard_map(layer, mesh=grid(2), in_specs=specs, out_specs=out)
    gradient = jax.grad(lambda w, x: jnp.sin(fn(x, *w)).sum())
    sent = wire(gradient)(weights, x).total
    shares = weights[0].nbytes // 2, weights[1].nbytes // (2 if kind == "column" else 1)
    rows = 2 * 1 / 2 * len(x) // 4 * b1.nbytes if kind == "row" else 0  # forward
    assert sent == 2 * 3 / 4 * sum(shares) + rows


def test_other_members_rows_do_not_poison():
    x = jnp.ones((2, 4, 1)).at[0, 1].set(jnp.nan)
    for scheme in "ABC":
        out = jax.vmap(
            lambda h, s=scheme: modulo_layer(jnp.sin, h, "i", scheme=s), axis_name="i"
        )(x)
        assert np.isnan(out[0, 1]).all() and np.isnan(out).sum() == 1


def test_errors():
    x, k0, b0, _, _ = arrays()
    with pytest.raises(ValueError, match=r"kernel float32\[16,6\].*split d of x"):
        column_dense(x, k0.T)
    with pytest.raises(ValueError, match=r"bias float32\[6\]"):
        column_dense(x, k0, jnp.ones(6))
    with pytest.raises(ValueError, match="wanted \\(\\.\\.\\., d\\)"):
        row_dense(x, b0, None, "model")
    with pytest.raises(ValueError, match=r"scheme is 'D'; wanted one of"):
        modulo_layer(jnp.sin, x, "model", scheme="D")
    with pytest.raises(NameError, match="'model' is not bound here; call modulo_layer"):
        modulo_layer(jnp.sin, x, "model")
    with pytest.raises(ValueError, match=r"6 rows do not divide over the 4 members"):
        by_modulo(4, "C")(*arrays(N * 6))
