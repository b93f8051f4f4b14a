import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.robust import programs
from jaxmethods.robust.programs import run_detached, signature


def sign(fn, *args):
    return signature(jax.make_jaxpr(fn)(*args).jaxpr)


@jax.custom_jvp
def straight(x):
    return jnp.round(x)


straight.defjvp(lambda primals, tangents: (straight(*primals), *tangents))


@jax.custom_vjp
def doubled(x):
    return x


doubled.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))

FUNCTIONS = [
    lambda x: x + 1.0,
    lambda x: x + 2.0,
    lambda x: x * 1.0,
    lambda x: x * 0.0,
    lambda x: x * -0.0,
    lambda x: x * jnp.nan,
    lambda x: (x + 1.0)[::-1],
    lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x + 1.0, x),
    lambda x: jax.lax.fori_loop(0, 4, lambda _, x: x + 1.0, x),
    lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x + 2.0, x),
    lambda x: jax.lax.cond(x[0] > 0, lambda x: x, lambda x: -x, x),
    lambda x: jax.lax.cond(x[0] > 0, lambda x: -x, lambda x: x, x),
    lambda x: jax.nn.softplus(x),
    lambda x: jax.nn.relu(x),
    lambda x: straight(x),
    lambda x: doubled(x),
    lambda x: (x, x + 1.0)[0],
    lambda x: x.astype(jnp.bfloat16),
]


def test_signatures_are_equal_only_for_equal_programs():
    x = jnp.arange(3.0)
    first = [sign(fn, x) for fn in FUNCTIONS]
    again = [sign(lambda x, fn=fn: fn(x), x) for fn in FUNCTIONS]
    for i, mine in enumerate(first):
        assert hash(mine) == hash(again[i])
        assert [mine == other for other in again] == [i == j for j in range(len(again))]
    assert sign(FUNCTIONS[0], x) != sign(FUNCTIONS[0], jnp.arange(4.0))
    assert sign(FUNCTIONS[0], x) != sign(FUNCTIONS[0], x.astype("float16"))


def test_a_new_closure_is_not_compiled_again_and_never_stale():
    def call(weight, fn):
        return run_detached(lambda x: fn(x) * weight, jnp.arange(3.0))

    for fn in FUNCTIONS[-6:-2]:
        want = fn(jnp.arange(3.0))
        np.testing.assert_allclose(call(jnp.ones(3), fn), want)
        misses = programs._compiled.cache_info().misses
        np.testing.assert_allclose(call(5 * jnp.ones(3), fn), 5 * want)
        assert programs._compiled.cache_info().misses == misses


def test_a_function_that_reads_the_outside_sees_it_change():
    outside = {"weight": jnp.ones(2)}

    def fn(x):
        return outside["weight"] * x

    assert np.array_equal(run_detached(fn, jnp.ones(2)), [1, 1])
    outside["weight"] = jnp.full(2, 7.0)
    assert np.array_equal(run_detached(fn, jnp.ones(2)), [7, 7])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_gradients_stop_and_transformations_pass(wrap):
    def fn(weight, x):
        def inner(x):
            return {"out": jax.lax.fori_loop(0, 2, lambda _, x: weight * x, x)}

        return run_detached(inner, x)["out"]

    def total(weight, x):
        return (fn(weight, x) * weight).sum()

    weight, x = jnp.array([2.0, 3.0]), jnp.ones((4, 2))
    got = wrap(jax.vmap(fn, in_axes=(None, 0)))(weight, x)
    np.testing.assert_allclose(got, np.tile([4.0, 9.0], (4, 1)))
    gradients = wrap(jax.grad(total, argnums=(0, 1)))(weight, x[0])
    np.testing.assert_allclose(gradients[0], [4.0, 9.0])
    np.testing.assert_allclose(gradients[1], [0.0, 0.0])
