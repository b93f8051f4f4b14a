"""Functions of every style that the walker must leave as they are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

# Primitives that occur in linen, nnx, equinox-style and plain models.
EXPECTED = frozenset(
    """abs add and argmax broadcast_in_dim clamp concatenate cond conv_general_dilated
    convert_element_type cos cumsum custom_jvp_call custom_vjp_call div dot_general
    dynamic_slice eq erf erfc exp expm1 gather ge gt integer_pow iota is_finite jit log
    log1p logistic lt max min mul ne neg not pad pow reduce_max reduce_min reduce_prod
    reduce_sum reduce_window_max reduce_window_sum remat2 reshape rev rsqrt scan
    select_n sign sin slice sort split sqrt square squeeze stack stop_gradient sub tan
    tanh transpose while""".split()
)


class Member(NamedTuple):
    """A function of one array, and the array."""

    fn: Callable[[jax.Array], Any]
    x: jax.Array


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), strides=2)(x))
        x = nn.max_pool(x, (2, 2), (1, 1)) + nn.avg_pool(x, (2, 2), (1, 1))
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.GroupNorm(1)(x).reshape(-1, 3)
        x = nn.LayerNorm(use_fast_variance=False)(nn.RMSNorm()(x))
        x = nn.MultiHeadDotProductAttention(1, qkv_features=4)(x)
        return nn.log_softmax(nn.Dense(4)(nn.gelu(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        token = jnp.argmax(x)
        return nnx.silu(self.dense(nnx.softplus(self.embed(token)) * x[:4]))


def linen() -> Member:
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 2))
    net = LinenNet()
    fast = {"xla_backend_optimization_level": 0}
    params = jax.jit(net.init, compiler_options=fast)(jax.random.key(1), x)
    return Member(lambda x: net.apply(params, x), x)


def nnx_net() -> Member:
    graph, state = nnx.split(NnxNet(nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    x = jax.random.normal(jax.random.key(2), (7,))
    return Member(lambda x: nnx.merge(graph, nnx.State(params))(x), x)


def equinox_net() -> Member:
    net = eqx.nn.MLP(3, 2, 4, 1, jax.nn.elu, key=jax.random.key(3))
    return Member(lambda x: net(x), jnp.array([0.3, -1.0, 0.0]))


def lstm(x):
    w = jnp.full((2, 12), 0.3)

    def cell(carry, x):
        h, c = carry
        i, f, u, o = jnp.split(jnp.stack([x, h]).sum(0) @ w[:, :8], 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(u)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = 0 * x[:2]
    return jax.lax.scan(cell, (zero, zero), x.reshape(-1, 2), reverse=True)[1]


def elementary(x):
    y = jnp.abs(x) + 0.5
    parts = [jnp.sin(x), jnp.cos(x), jnp.tan(x / 4), jax.lax.erf(x), jnp.sqrt(y)]
    parts += [jnp.log(y), y**0.5, x**3, x**2, jnp.square(x), jnp.expm1(x), -x]
    parts += [jax.lax.rsqrt(y), jax.scipy.special.erfc(x), jnp.clip(x, -1, 1)]
    parts += [jax.nn.relu6(x), jax.nn.leaky_relu(x), jax.nn.hard_tanh(x)]
    parts += [jax.nn.gelu(x, approximate=False), jnp.maximum(x, y), jnp.sign(x)]
    parts += [jax.lax.stop_gradient(x) * x, jax.lax.clamp(-0.5, x, 0.5)]
    return jnp.stack(parts)


def structural(x):
    y = jnp.pad(jnp.concatenate([x, x[::-1]]), (1, 3)).reshape(3, -1)
    y = jnp.cumsum(y.T, 0)[1:3]
    z = jax.lax.dynamic_slice(y, (jnp.int32(jnp.sum(x) > 0), 0), (1, 2))
    y = y + (jnp.arange(y.shape[1])[None] == jnp.argmax(x))
    mask = ~((y > 0) & (y != 1)) & jnp.isfinite(y)
    y = jnp.where(mask, y, jnp.sort(y, 1))
    flat = jnp.stack([y.sum(), y.prod(), y.min(), jax.nn.logsumexp(y), z.sum()])
    return flat * jnp.take(x, jnp.array([0, 2, 0, 1, 3]))


def control(x):
    x = jax.lax.cond(x[0] > 0, jnp.sin, lambda v: v * 2, x)
    return jax.lax.while_loop(lambda v: jnp.sum(v**2) > 1, lambda v: v * 0.7, x)


def rematted(x):
    inner = jax.checkpoint(lambda v: jnp.tanh(jnp.sin(v)) * v)
    policy = jax.checkpoint_policies.dots_saveable
    return inner(x).sum() + jax.checkpoint(lambda v: (v @ v) * v, policy=policy)(x)


def kinks(x):
    relu = jax.jit(jax.nn.relu)
    return relu(x) + straight_through(3 * x) * jnp.sin(x)


POINT = jnp.array([0.0, -0.7, 1.3, 0.4])
MEMBERS: dict[str, Callable[[], Member]] = {
    "linen": linen,
    "nnx": nnx_net,
    "equinox": equinox_net,
    "lstm": lambda: Member(lstm, jnp.linspace(-1, 1, 6)),
    "elementary": lambda: Member(elementary, POINT),
    "structural": lambda: Member(structural, POINT),
    "control": lambda: Member(control, POINT),
    "rematted": lambda: Member(rematted, POINT),
    "kinks": lambda: Member(kinks, POINT),
}
