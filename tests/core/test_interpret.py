"""The rewriting walk: rules that touch nothing change nothing; rules that do, do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods import core

from .zoo import EXPECTED, MEMBERS


def decline(site, *values):
    """A rule that takes nothing, so that every body around it is bound anew."""
    return NotImplemented


DECLINE = dict.fromkeys(
    ["dot_general", "conv_general_dilated", "mul", "tanh", "sin", "max"], decline
)


def walked(fn, rules):
    def run(x):
        jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(x)
        return jax.tree.unflatten(
            jax.tree.structure(shape), core.interpret(jaxpr, rules, [x])
        )

    return run


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def gradient(fn):
    return jax.grad(lambda x: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(fn(x))))


@pytest.mark.parametrize("rules", [{}, DECLINE], ids=["no rules", "rules decline"])
@pytest.mark.parametrize("name", MEMBERS)
def test_untouched_is_bit_identical(name, rules):
    fn, x = MEMBERS[name]()
    again = walked(fn, rules)
    assert_same(jax.jit(again)(x), jax.jit(fn)(x))
    batch = jnp.stack([x, x + 0.25])
    assert_same(jax.jit(jax.vmap(again))(batch), jax.jit(jax.vmap(fn))(batch))
    if name == "control":  # a while loop has no reverse derivative
        one = (x,), (jnp.ones_like(x),)
        assert_same(jax.jvp(again, *one), jax.jvp(fn, *one))
    else:
        assert_same(jax.jit(gradient(again))(x), jax.jit(gradient(fn))(x))


@pytest.mark.parametrize("rules", [{}, DECLINE], ids=["no rules", "rules decline"])
@pytest.mark.parametrize("name", ["equinox", "lstm", "kinks", "rematted"])
def test_untouched_under_shard_map(name, rules):
    fn, x = MEMBERS[name]()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    batch = jnp.stack([x, 2 * x])

    def sharded(f):
        each = jax.vmap(gradient(f))
        spec = P("data")
        return jax.jit(jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec))

    assert_same(sharded(walked(fn, rules))(batch), sharded(fn)(batch))


def primitives(jaxpr, found):
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for body in jax.extend.core.jaxprs_in_params(equation.params):
            primitives(getattr(body, "jaxpr", body), found)
    return found


def test_the_zoo_holds_every_primitive_that_models_use():
    found = set()
    for make in MEMBERS.values():
        fn, x = make()
        primitives(jax.make_jaxpr(fn)(x).jaxpr, found)
    assert EXPECTED - found == set()


def test_derivatives_are_the_users():
    fn, _ = MEMBERS["kinks"]()
    slope = jax.grad(lambda x: walked(fn, DECLINE)(x).sum())(jnp.zeros(1))
    assert slope[0] == 0.0  # relu'(0) = 0, and round straight through times sin(0)


def test_a_rule_reaches_every_body_and_keeps_what_it_is():
    def fn(x):
        def step(c, v):
            return jax.jit(jnp.sin)(c) + v, jnp.sin(v)

        c, ys = jax.lax.scan(step, x, jnp.arange(3.0))
        c = jax.lax.cond(c > 0, jnp.sin, lambda v: v, c)
        c = jax.lax.while_loop(lambda v: jnp.sin(v) < 0.9, lambda v: v + 0.1, c)
        return jax.checkpoint(jnp.sin)(c) * ys.sum()

    sites = []

    def rule(site, x):
        sites.append((site.position, len(site.iterations), site.labels))
        return [jnp.cos(x)]

    jaxpr = jax.make_jaxpr(fn)(1.0)
    rewritten = jax.make_jaxpr(
        lambda x: core.interpret(jaxpr, {"sin": rule}, [x], labels=[{"x"}])
    )(1.0)
    found = primitives(rewritten.jaxpr, set())
    assert {"scan", "jit", "cond", "while", "remat2", "cos"} <= found
    assert "sin" not in found
    assert len({position for position, _, _ in sites}) == 5
    assert [depth for _, depth, _ in sites] == [1, 1, 0, 1, 0]
    of_x = [labels == (frozenset({"x"}),) for _, _, labels in sites]
    assert of_x == [True, False, True, True, True]


def test_iterations_count_the_rounds_of_a_scan():
    def fn(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), jnp.sin(c)), x, None, length=4)[1]

    rules = {"sin": lambda site, x: [x + site.iterations[0]]}
    rounds = walked(fn, rules)(jnp.float32(0))
    np.testing.assert_array_equal(rounds, [0, 1, 3, 6])


def test_labels_follow_values_through_loops():
    seen = {}

    def rule(site, a, b):
        seen[site.position] = site.labels
        return NotImplemented

    def fn(w, x):
        def step(h, v):
            return jnp.tanh(h @ w + v), (2 * w) @ w

        return jax.lax.scan(step, jnp.zeros(2), x)

    w, x = jnp.eye(2), jnp.ones((3, 2))
    jaxpr = jax.make_jaxpr(fn)(w, x)
    core.interpret(jaxpr, {"dot_general": rule}, [w, x], labels=[{"w"}, {"x"}])
    both, weight = frozenset({"w", "x"}), frozenset({"w"})
    assert set(seen.values()) == {(both, weight), (weight, weight)}


def test_inline_dissolves_calls_so_that_rules_collect():
    collected = []

    def rule(site, x):
        collected.append(x)
        return NotImplemented

    fn = jax.jit(lambda x: jax.checkpoint(jnp.sin)(x))
    jaxpr = jax.make_jaxpr(fn)(1.0)

    @jax.jit
    def run(x):
        outs = core.interpret(jaxpr, {"sin": rule}, [x], inline={"jit", "remat2"})
        return outs, collected

    assert run(2.0)[1] == [2.0]


def test_what_cannot_be_replaced_is_reported_with_its_line():
    @jax.custom_jvp
    def square(x):
        return x @ x

    square.defjvp(lambda p, t: (p[0] @ p[0], 2 * p[0] @ t[0]))
    told = []
    jaxpr = jax.make_jaxpr(lambda x: square(x))(jnp.ones(2))
    core.interpret(jaxpr, {"dot_general": decline}, [jnp.ones(2)], report=told.append)
    assert len(told) == 1
    assert "dot_general" in told[0] and "test_interpret.py" in told[0]


def test_compiles_once():
    fn, x = MEMBERS["lstm"]()
    traces = []

    def counted(x):
        traces.append(1)
        return fn(x)

    run = jax.jit(walked(counted, DECLINE))
    run(x), run(x + 1)
    assert len(traces) == 1


def test_a_platform_lowers_its_own_branch_alone():
    from jax.experimental import pallas as pl

    def kernel(x, out):
        out[...] = jnp.sin(x[...])

    def on_tpu(x):
        return pl.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype))(x) + 1

    def fn(x):
        return jax.lax.platform_dependent(x, tpu=on_tpu, default=jnp.sin)

    rules = {"sin": lambda site, x: [jnp.cos(x)], "add": decline}
    x = jnp.arange(8.0)
    assert_same(jax.jit(walked(fn, rules))(x), jnp.cos(x))
    assert_same(jax.jit(walked(fn, {"add": decline}))(x), jnp.sin(x))
