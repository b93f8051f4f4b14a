"""Functions with bounds of their own: taken whole by bound, as they are by jax."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmethods import bound, core, quantize

ROOT = Path(__file__).parent.parent.parent
X = jnp.array([-1.0, 0.4, 2.0])
BALL = bound.Ball(X, 0.5)


def test_the_page_runs(monkeypatch):
    from jaxmethods.bound import _registry

    monkeypatch.setattr(_registry, "_INTERVAL", dict(_registry._INTERVAL))
    monkeypatch.setattr(_registry, "_RELAX", dict(_registry._RELAX))
    page = (ROOT / "docs" / "extending_bound.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 8
    exec(compile("\n".join(blocks), "extending_bound.md", "exec"), {})


def test_the_readme_leads_to_the_page():
    assert "](docs/extending_bound.md)" in (ROOT / "README.md").read_text()


def custom(scale=None, seen=None):
    """x * tanh(x), or scale times it, with the trivial bounds [0, |scale x|]."""

    @bound.custom_bounds
    def fn(x, scale):
        return {"out": scale * x * jnp.tanh(x)}

    @fn.defbounds
    def _(x, scale):
        if seen is not None:
            seen.append((x, scale))
        size = jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper)) * scale
        return bound.Bounds({"out": jnp.zeros_like(size)}, {"out": size})

    return fn


def test_the_rule_sees_the_arguments_and_gives_the_bounds():
    seen = []
    fn = custom(seen=seen)
    for method in (bound.ibp, bound.crown_ibp, bound.crown, bound.forward):
        got = method(lambda x: fn(x, 2.0))(BALL)
        np.testing.assert_allclose(got.lower["out"], np.zeros(3), atol=1e-5)
        np.testing.assert_allclose(got.upper["out"], [3.0, 1.8, 5.0], rtol=1e-5)
    x, scale = seen[0]
    assert isinstance(x, bound.Bounds) and float(scale) == 2.0


def test_without_rules_the_function_is_bounded_step_by_step():
    plain = bound.custom_bounds(lambda x: 2 * jnp.tanh(x))
    np.testing.assert_allclose(
        bound.ibp(plain)(BALL).upper, 2 * np.tanh(X + 0.5), rtol=1e-5
    )


def inner(x):
    return jnp.sin(x * X) + jnp.cumsum(x)


MARKED = {
    "custom": lambda: bound.custom_bounds(inner),
    "custom, with rules": lambda: with_rules(inner),
    "monotone": lambda: bound.monotone(inner),
    "s_shaped": lambda: bound.s_shaped(inner),
}


def with_rules(fn):
    wrapped = bound.custom_bounds(fn)
    wrapped.defbounds(lambda x: x)
    return wrapped


@pytest.mark.parametrize("name", MARKED)
def test_jax_transforms_it_as_the_function_itself(name):
    fn, xs = MARKED[name](), jnp.stack([X, 2 * X])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    spec = jax.sharding.PartitionSpec("d")
    ways = {
        "eager": lambda f: f(X),
        "jit": lambda f: jax.jit(f)(X),
        "jacobian": lambda f: jax.jacobian(f)(X),
        "jvp": lambda f: jax.jvp(f, (X,), (X,)),
        "hessian": lambda f: jax.hessian(lambda x: f(x).sum())(X),
        "vmap": lambda f: jax.vmap(f)(xs),
        "vmap of grad": lambda f: jax.vmap(jax.grad(lambda x: f(x).sum()))(xs),
        "scan": lambda f: lax.scan(lambda c, x: (f(c + x), c), X, xs),
        "remat": lambda f: jax.grad(jax.checkpoint(lambda x: f(x).sum()))(X),
        "shard_map": lambda f: jax.shard_map(
            jax.vmap(f), mesh=mesh, in_specs=spec, out_specs=spec
        )(xs),
        "closure": lambda f: jax.grad(
            lambda k: bound.monotone(lambda x: k * f(x))(X).sum()
        )(2.0),
    }
    for way in ways.values():
        for got, want in zip(
            jax.tree.leaves(way(fn)), jax.tree.leaves(way(inner)), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_linear_function_has_a_transpose_and_collectives_keep_their_axis():
    twice = bound.monotone(lambda x: 2 * x)
    np.testing.assert_allclose(jax.linear_transpose(twice, X)(X)[0], 2 * X)
    rest = bound.monotone(lambda x: x - lax.psum(x, "i"))
    np.testing.assert_allclose(jax.vmap(rest, axis_name="i")(X), X - X.sum())


def test_rules_are_mapped_along_inside_a_bounded_function():
    @bound.custom_bounds
    def total(x, y):
        return x.sum() + y

    @total.defbounds
    def _(x, y):
        assert x.lower.shape == (3,)
        return bound.Bounds(x.lower.sum() + y - 1, x.upper.sum() + y + 1)

    def fn(x):
        one = jax.vmap(total, (1, None))
        return jax.vmap(one, (0, 0))(x, jnp.arange(2.0))

    x = jnp.arange(24.0).reshape(2, 3, 4)
    for method in (bound.ibp, bound.crown):
        got = method(fn)(bound.Ball(x, 0.1))
        want = x.sum(1) + jnp.arange(2.0)[:, None]
        np.testing.assert_allclose(got.upper, want + 1.3, rtol=1e-5)


def test_lines_are_mapped_along():
    @bound.custom_bounds
    def double(x):
        return jnp.sin(x) * 0 + 2 * x

    def lines(x):
        two, zero = jnp.full_like(x.lower, 2), jnp.zeros_like(x.lower)
        return bound.Lines(two, zero, two, zero)

    double.defbounds(lambda x: bound.Bounds(2 * x.lower, 2 * x.upper), lines)
    fn = lambda x: jax.vmap(double)(x) - 2 * x  # noqa: E731
    got = bound.crown(fn)(bound.Ball(jnp.ones((2, 3)), 0.5))
    np.testing.assert_allclose(got.upper, np.zeros((2, 3)), atol=1e-4)


@pytest.mark.parametrize("increasing", [True, False])
def test_monotone_is_exact_in_intervals_and_sound_in_lines(increasing):
    sign = 1.0 if increasing else -1.0
    fn = bound.monotone(lambda x: sign * (x + jnp.round(x)), increasing=increasing)
    got = bound.ibp(fn)(BALL)
    want = sorted([fn(X - 0.5), fn(X + 0.5)], key=lambda v: float(v[0]))
    np.testing.assert_allclose(got.lower, want[0], rtol=1e-5)
    np.testing.assert_allclose(got.upper, want[1], rtol=1e-5)
    grid = X[None] + jnp.linspace(-0.5, 0.5, 401)[:, None]
    planes = bound.linear_bounds(fn)(BALL)
    diagonal = jnp.diagonal(planes.lower_slope), jnp.diagonal(planes.upper_slope)
    values = fn(grid)
    assert (grid * diagonal[0][None] + planes.lower_bias[None] <= values + 1e-5).all()
    assert (grid * diagonal[1][None] + planes.upper_bias[None] >= values - 1e-5).all()


def test_s_shaped_has_the_lines_of_tanh():
    marked = bound.s_shaped(lambda x: jnp.tanh(x))
    for method in (bound.ibp, bound.crown):
        got, want = (
            method(lambda x, f=f: f(x) - 0.4 * x[::-1])(BALL)
            for f in (marked, jnp.tanh)
        )
        np.testing.assert_allclose(got.upper, want.upper, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.lower, want.lower, rtol=1e-4, atol=1e-5)


def test_other_transforms_see_the_inside():
    """And what is rewritten inside no longer has the bounds that were declared."""
    w = jax.random.normal(jax.random.key(0), (3, 3))

    @bound.custom_bounds
    def layer(x):
        return x @ w

    layer.defbounds(lambda x: bound.Bounds(x.lower * 0 - 99, x.upper * 0 + 99))
    assert [n.name for n in core.flatten(layer, X).nodes] == ["dot_general"]
    policy = quantize.Policy(weight=quantize.ptq(2))
    net = lambda params, x: jnp.tanh(x @ params)  # noqa: E731
    whole = bound.custom_bounds(net)
    whole.defbounds(lambda p, x: bound.Bounds(x.lower * 0 - 99, x.upper * 0 + 99))
    got, want = (quantize.qat(f, policy)(w, X) for f in (whole, net))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    bounds = bound.ibp(lambda x: quantize.qat(whole, policy)(w, x))(BALL)
    assert float(bounds.upper.max()) <= 1.001


def test_errors_say_what_to_do():
    with pytest.raises(TypeError, match=r"interval of the bounds of .* is int 3"):
        custom().defbounds(3)
    with pytest.raises(TypeError, match="relax of the bounds of"):
        custom().defbounds(lambda x: x, 3)
    with pytest.raises(
        ValueError, match=r"float32\[\] of float32\[3\]; wanted one array"
    ):
        bound.monotone(jnp.sum)(X)
    narrow = bound.custom_bounds(jnp.sin)
    narrow.defbounds(lambda x: bound.Bounds(x.lower[0], x.upper[0]))
    with pytest.raises(ValueError, match=r"an end of shape \(\); wanted \(3,\)"):
        bound.ibp(narrow)(BALL)
    narrow.defbounds(lambda x: None)
    with pytest.raises(TypeError, match="returned a NoneType; wanted Bounds"):
        bound.ibp(narrow)(BALL)
    narrow.defbounds(lambda x: x, lambda x: tuple(x))
    with pytest.raises(TypeError, match="returned a tuple; wanted Lines or Planes"):
        bound.crown(narrow)(BALL)

    def closes(x):
        fn = bound.monotone(lambda y: x * y)
        return fn(jnp.ones(3))

    with pytest.raises(NotImplementedError, match="closes over a value that a set"):
        bound.ibp(closes)(BALL)
