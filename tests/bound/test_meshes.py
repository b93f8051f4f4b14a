"""Bounds of any function inside a `shard_map`: the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods import bound

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
XS = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)


def layer_norm(x):
    return (x - x.mean()) / jnp.sqrt(x.var() + 1e-5)


def pooled(x):
    """Max pools over pairs, of dense rows and of all entries."""
    window = {"window_dimensions": (2,), "window_strides": (2,), "padding": "VALID"}
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, **window)
    return jnp.repeat(jnp.tanh(x), 2)


FUNCTIONS = {
    "softplus, sin": lambda x: jnp.sin(jax.nn.softplus(x)),
    "gelu, reciprocal": lambda x: jax.nn.gelu(x) / (x * x + 1),
    "products": lambda x: jax.nn.softmax(layer_norm(x)) * jnp.sort(x),
    "logsumexp, power": lambda x: (jax.nn.logsumexp(x) ** 2 + x * x) ** 0.3,
    "cumulative": lambda x: jnp.cumprod(x) + jax.lax.cumlogsumexp(x),
    "branch": lambda x: jnp.where(x > 0, jax.nn.elu(x), 0.1 * jnp.maximum(x, -1)),
    "max pooling": pooled,
    "scan": lambda x: jax.lax.scan(lambda c, y: (jnp.tanh(c + y),) * 2, x.sum(), x)[1],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shard_map_over_examples(name):
    fn = lambda x: FUNCTIONS[name](W @ x) @ W  # noqa: E731

    def lower(x):
        ball = bound.Ball(x, 0.1)
        others = (bound.forward,) if name in ("branch", "scan") else ()
        return [m(fn)(ball).lower for m in (bound.ibp, bound.crown, *others)]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.shard_map(
        jax.vmap(lower), mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    for got, want in zip(jax.jit(each)(XS), jax.jit(jax.vmap(lower))(XS), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
