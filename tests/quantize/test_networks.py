"""qat and fqt on networks as people write them, none of them written for it."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxmethods.quantize import Policy, bhq, fqt, psq, ptq, qat

from .unbiased import assert_unbiased

POLICY = Policy(
    activation=ptq(8, zero_aligned=False),
    weight=ptq(8),
    input_grad=psq(4),
    weight_grad=psq(5, per="feature"),
)
IMAGES = jax.random.normal(jax.random.key(0), (8, 6, 6, 1))
SEQUENCES = jax.random.normal(jax.random.key(1), (4, 5, 3))
TOKENS = jax.random.randint(jax.random.key(2), (4, 6), 0, 9)


class LinenConv(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(6, (2, 2), feature_group_count=3)(x)
        return nn.Dense(2)(x.mean((1, 2)))


def linen_inference():
    net = LinenConv()
    v = net.init(jax.random.key(3), IMAGES)

    def fn(params, stats, x):
        out = net.apply({"params": params, "batch_stats": stats}, x)
        return jnp.mean((out - 1) ** 2)

    return fn, v["params"], (v["batch_stats"], IMAGES)


def linen_training():
    net = LinenConv()
    v = net.init(jax.random.key(3), IMAGES)

    def fn(params, stats, x):
        out, new = net.apply(
            {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
        )
        return jnp.mean((out - 1) ** 2), new["batch_stats"]

    return fn, v["params"], (v["batch_stats"], IMAGES)


class NnxConv(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 3, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def nnx_training():
    graph, params, rest = nnx.split(NnxConv(nnx.Rngs(0)), nnx.Param, ...)

    def fn(params, rest, x):
        net = nnx.merge(graph, nnx.State(params), nnx.State(rest))
        loss = jnp.mean((net(x) - 1) ** 2)
        return loss, nnx.to_pure_dict(nnx.split(net, nnx.Param, ...)[2])

    return fn, nnx.to_pure_dict(params), (nnx.to_pure_dict(rest), IMAGES)


class Encoder(nn.Module):
    """A transformer encoder whose embedding is its output layer as well."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(9, 8)
        h = embed(tokens) + self.param("place", nn.initializers.normal(), (6, 8))[None]
        h = h + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(h))
        h = h + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(h))))
        return embed.attend(h)


def transformer():
    net = Encoder()
    params = net.init(jax.random.key(4), TOKENS)

    def fn(params, tokens, weight):
        logp = nn.log_softmax(net.apply(params, tokens))
        picked = jnp.take_along_axis(logp, tokens[..., None], -1)
        return -weight * jnp.mean(picked)

    return fn, params, (TOKENS, 0.5)


def lstm():
    net = nn.RNN(nn.LSTMCell(4))
    params = net.init(jax.random.key(5), SEQUENCES)
    return (lambda p, x: jnp.mean(net.apply(p, x) ** 2)), params, (SEQUENCES,)


def equinox_closure():
    cell = eqx.nn.GRUCell(3, 4, key=jax.random.key(6))
    params, static = eqx.partition(cell, eqx.is_array)

    def fn(params, xs):
        cell = eqx.combine(params, static)

        def last(x):
            step = lambda h, x: (cell(x, h), None)  # noqa: E731
            return jax.lax.scan(jax.checkpoint(step), jnp.zeros(4), x)[0]

        return jnp.mean(jax.vmap(last)(xs) ** 2)

    return fn, params, (SEQUENCES,)


def parameter_products():
    """Weights of weights, one of them used three times; dicts, flags and keywords."""
    params = {
        "a": jax.random.normal(jax.random.key(7), (3, 4)) / 2,
        "b": jax.random.normal(jax.random.key(8), (4, 3)) / 2,
        "unused": jnp.arange(3.0),
    }

    def fn(params, batch, twice, *, name):
        h = batch["x"] @ (params["a"] @ params["b"])
        if twice and name == "net":
            h = jnp.tanh(h) @ params["a"]
        return jnp.mean(h**2 * batch["weight"][:, None, None])

    weight = jnp.arange(1, 5) / 4
    call = lambda p, b: fn(p, b, True, name="net")  # noqa: E731
    return call, params, ({"x": SEQUENCES, "weight": weight},)


NETWORKS = {
    "linen, inference": linen_inference,
    "linen, training": linen_training,
    "nnx, training": nnx_training,
    "transformer": transformer,
    "lstm": lstm,
    "equinox closure": equinox_closure,
    "products of parameters": parameter_products,
}
AUX = ("linen, training", "nnx, training")


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_average_to_those_of_qat(name):
    fn, params, args = NETWORKS[name]()
    aux = name in AUX
    keys = jax.random.split(jax.random.key(9), 200)
    draw = jax.grad(fqt(fn, POLICY), argnums=1, has_aux=aux)
    run = jax.jit(jax.vmap(lambda k: draw(k, params, *args)))
    draws = run(keys)
    exact = jax.jit(jax.grad(qat(fn, POLICY), has_aux=aux))(params, *args)
    if aux:
        # The statistics of the batch are the forward pass's: no key moves them.
        (draws, stats), (exact, want) = draws, exact
        for s, w in zip(jax.tree.leaves(stats), jax.tree.leaves(want), strict=True):
            wanted = np.broadcast_to(w, s.shape)
            np.testing.assert_allclose(s, wanted, rtol=1e-4, atol=1e-6)
    assert_unbiased(draws, exact)
    noisy = [bool(d.var(0).sum() > 0) for d in jax.tree.leaves(draws)]
    assert sum(noisy) >= len(noisy) / 2


@pytest.mark.parametrize("name", NETWORKS)
def test_a_policy_of_none_changes_no_bit(name):
    fn, params, args = NETWORKS[name]()
    aux = name in AUX
    want = jax.jit(jax.value_and_grad(fn, has_aux=aux))(params, *args)
    got = jax.jit(jax.value_and_grad(fqt(fn, Policy()), 1, has_aux=aux))(
        None, params, *args
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_remat_draws_the_noise_of_the_network_without_it():
    fn, params, args = lstm()
    quantized, key = fqt(fn, POLICY), jax.random.key(10)

    def gradient(f):
        return jax.jit(jax.grad(f, argnums=1))(key, params, *args)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(jax.checkpoint(quantized)),
        gradient(quantized),
    )
    inside = jax.grad(fqt(jax.checkpoint(fn), POLICY), argnums=1)
    keys = jax.random.split(key, 100)
    draws = jax.jit(jax.vmap(lambda k: inside(k, params, *args)))(keys)
    assert_unbiased(draws, jax.jit(jax.grad(qat(fn, POLICY)))(params, *args))


def test_eight_shards_draw_apart_and_average_to_qat():
    fn, params, (stats, x) = linen_inference()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    exact_policy = Policy(input_grad=bhq(4), weight_grad=psq(4))

    def local(keys, params, x):
        params = jax.lax.pcast(params, "data", to="varying")
        own = lambda k: jax.random.fold_in(k, jax.lax.axis_index("data"))  # noqa: E731
        draw = lambda k: jax.grad(fqt(fn, exact_policy), 1)(own(k), params, stats, x)  # noqa: E731
        return jax.tree.map(lambda g: g[None], jax.lax.map(draw, keys))

    run = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P("data")
    )
    x = jnp.concatenate([x, 2 * x])
    draws = jax.jit(run)(jax.random.split(jax.random.key(11), 100), params, x)
    # The mean loss of the batch is the mean of those of its shards.
    means = jax.tree.map(lambda d: d.mean(0), draws)
    assert_unbiased(means, jax.grad(fn)(params, stats, x))
    kernel = np.asarray(draws["Conv_0"]["kernel"]) - np.asarray(
        draws["Conv_0"]["kernel"]
    ).mean(1, keepdims=True)
    flat = kernel.reshape(8, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(8)).max() < 0.3  # 900 numbers a shard


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_floats_beside_integers_and_flags(dtype):
    kernel = jnp.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3)
    ids, x = jnp.arange(8) % 4, jnp.tile(jnp.eye(4), (2, 1))

    def fn(params, ids, x, double, *, scale):
        h = x.astype(dtype)[ids] @ params["w"]
        count = (ids[None] @ jnp.ones((8, 1), int))[0, 0]  # integers stay what they are
        h = (2 * h if double else h).astype(jnp.float32)
        return jnp.mean(h**2) * scale * count / count

    def gradient(transformed, *key):
        def of_kernel(w):
            params = {"w": w, "step": jnp.int32(3)}
            return transformed(*key, params, ids, x, True, scale=2.0)

        return jax.grad(of_kernel)(kernel)

    keys = jax.random.split(jax.random.key(12), 200)
    draws = jax.vmap(lambda k: gradient(fqt(fn, POLICY), k))(keys)
    exact = gradient(qat(fn, POLICY))
    assert draws.dtype == exact.dtype == dtype
    error = np.asarray(draws, np.float64).mean(0) - np.asarray(exact, np.float64)
    # Each draw is rounded to its dtype too, by at most half a unit in the last place.
    ulp = float(jnp.finfo(dtype).eps) * np.abs(np.asarray(exact, np.float64)).max()
    chance = np.asarray(draws, np.float64).std(0).max() / len(keys) ** 0.5
    assert np.abs(error).max() < 5 * chance + ulp
