"""The analysing walk: one flat, live graph that computes what the function computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import core

from .zoo import MEMBERS, LinenNet

CALLS = {"jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat2", "closed_call"}


@pytest.mark.parametrize("name", MEMBERS)
def test_graph_computes_the_function(name):
    fn, x = MEMBERS[name]()
    graph = core.flatten(fn, x)
    assert not CALLS & {node.name for node in graph.nodes}
    got, want = jax.jit(graph.evaluate)(x), jax.jit(fn)(x)
    # Constants are evaluated ahead of time, which may round their sums otherwise.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


def test_constants_are_evaluated_and_dead_code_is_dropped():
    def fn(params, x, training):
        dead = jnp.sin(x) @ jnp.cos(x)
        del dead
        scale = jnp.exp(params["w"]).sum()
        return (x * scale, params["w"]) if not training else x

    params, x = {"w": jnp.ones(3)}, jnp.ones(4)
    graph = core.flatten(fn, params, x, False, marked=(False, True, False))
    assert [node.name for node in graph.nodes] == ["mul"]
    assert not isinstance(graph.outputs[1], core.Variable)
    got = graph.evaluate(2 * x)
    np.testing.assert_allclose(got[0], 6 * np.e * np.ones(4), rtol=1e-6)


def test_an_unused_input_of_a_call_keeps_nothing_alive():
    inner = jax.jit(lambda a, b: a + 1)
    graph = core.flatten(lambda x: inner(x, jnp.sin(x)), 1.0)
    assert [node.name for node in graph.nodes] == ["add"]


def test_marked_leaves_need_a_shape_only_and_others_may_be_tracers():
    @jax.jit
    def run(w, x):
        shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        graph = core.flatten(lambda w, x: w @ x, w, shape, marked=(False, True))
        return graph.evaluate(x)

    assert run(jnp.arange(3.0), jnp.ones(3)) == 3.0


def test_works_inside_every_transform():
    def run(x):
        return core.flatten(lambda v: jax.nn.softmax(jnp.sin(v) @ v * v), x).evaluate(x)

    xs = jnp.linspace(0, 1, 6).reshape(2, 3)
    want = jnp.stack([run(x) for x in xs])
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(xs), want, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jacrev(run)(xs[1]), jax.jacfwd(run)(xs[1]), rtol=1e-4, atol=1e-6
    )


def test_a_line_of_the_model_not_of_the_library():
    x = jnp.ones((1, 6, 6, 2))
    net = LinenNet()
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    graph = core.flatten(net.apply, shapes, x)
    conv = next(n for n in graph.nodes if n.name == "conv_general_dilated")
    assert "zoo.py" in core.source_line(conv.equation)


def test_a_function_without_a_line_of_its_own_has_that_of_the_caller():
    (node,) = core.flatten(jax.lax.rsqrt, jnp.ones(3)).nodes
    line = core.source_line(node.equation)
    assert "test_flatten.py" in line and line.endswith("of_the_caller)")


def test_what_jax_says_of_a_function_names_that_of_the_user():
    def branching(x):
        return x if x > 0 else -x

    with pytest.raises(
        jax.errors.TracerBoolConversionError, match=r"branching at .*\.py"
    ):
        core.flatten(branching, 1.0)


def test_marked_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="marked has 1 entries for 2 leaves"):
        core.flatten(lambda x, y: x, 1.0, 2.0, marked=(True,))
