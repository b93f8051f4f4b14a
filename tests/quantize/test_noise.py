"""gradient_noise: bias, variance and bits against draws and closed forms."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxmethods.quantize import Noise, Policy, fqt, gradient_noise, psq, ptq, qat

X = jax.random.normal(jax.random.key(0), (32, 5))
PARAMS = {
    "w": jax.random.normal(jax.random.key(1), (5, 6)) / 2,
    "b": jnp.full(6, 0.1),
    "v": jax.random.normal(jax.random.key(2), (6, 3)) / 2,
}
FORWARD = Policy(activation=ptq(8, zero_aligned=False), weight=ptq(8))


def noisy(bits):
    return dataclasses.replace(FORWARD, input_grad=psq(bits), weight_grad=psq(bits))


def loss(p, x):
    return jnp.mean((jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"] - 1) ** 2)


def report(bits, num_samples=400, fn=loss, x=X, seed=3):
    run = gradient_noise(fn, noisy(bits))
    go = jax.jit(lambda k: run(k, PARAMS, x, num_samples=num_samples))
    return go(jax.random.key(seed))


def test_agrees_with_draws():
    draw = jax.grad(fqt(loss, noisy(3)), argnums=1)
    keys = jax.random.split(jax.random.key(4), 400)
    draws = jax.jit(jax.vmap(lambda k: draw(k, PARAMS, X)))(keys)
    exact = jax.grad(qat(loss, FORWARD))(PARAMS, X)
    found = report(3)
    assert set(found) == set(PARAMS)
    for name, noise in found.items():
        assert isinstance(noise, Noise) and noise.bits.dtype == jnp.int32
        assert all(part.shape == () for part in noise)
        variance = draws[name].var(0, ddof=1).sum()
        # Relative error of each estimate about sqrt(2 / (400 * a few dimensions)).
        np.testing.assert_allclose(noise.variance, variance, rtol=0.2)
        signal = jnp.sum(exact[name] ** 2)
        np.testing.assert_allclose(noise.snr, signal / noise.variance, rtol=1e-4)
        assert 0 <= noise.bias < 20 * variance / 400


def test_exactly_the_formulas():
    """Two samples, by hand."""
    keys = jax.random.split(jax.random.key(3), 2)
    draw = jax.jit(jax.grad(fqt(loss, noisy(2)), argnums=1))
    g0, g1 = (draw(k, PARAMS, X) for k in keys)
    exact = jax.grad(qat(loss, FORWARD))(PARAMS, X)
    found = report(2, num_samples=2)
    for name in PARAMS:
        variance = jnp.sum((g0[name] - g1[name]) ** 2) / 2
        off = jnp.sum(((g0[name] + g1[name]) / 2 - exact[name]) ** 2)
        np.testing.assert_allclose(found[name].variance, variance, rtol=1e-3)
        bias = jnp.maximum(off - variance / 2, 0)
        np.testing.assert_allclose(found[name].bias, bias, rtol=1e-2, atol=1e-9)


def test_a_gradient_that_is_clipped_on_its_way_is_biased():
    @jax.custom_vjp
    def one_way(y):
        return y

    one_way.defvjp(lambda y: (y, None), lambda _, g: (jnp.maximum(g, 0),))
    # Steps of 2/3 from -1 to 1: zero becomes -1/3 or 1/3, of which one is let through.
    c = jnp.tile(jnp.array([-1.0, 0.0, 1.0]), (4, 1))
    fn = lambda w, x: jnp.sum(c * (one_way(x @ w) @ jnp.eye(3)))  # noqa: E731
    policy = Policy(activation=psq(8), input_grad=psq(2))
    run = gradient_noise(fn, policy)
    found = run(jax.random.key(0), jnp.ones((4, 3)), jnp.eye(4), num_samples=400)
    np.testing.assert_allclose(found.bias, 4 / 36, rtol=0.2)
    np.testing.assert_allclose(found.variance, 4 / 36, rtol=0.2)
    np.testing.assert_allclose(found.snr, 4 / found.variance, rtol=1e-5)


def test_bits_are_those_of_the_formula_at_whichever_bits_they_are_measured():
    # Much alike, so that the choice of the batch matters little; 40 = 16 * 2 + 8.
    x = X[:1] + jax.random.normal(jax.random.key(5), (40, 5)) / 20
    gradient = jax.vmap(jax.grad(qat(loss, FORWARD)), (None, 0))
    chunks = jax.jit(gradient)(PARAMS, x[:32].reshape(16, 2, 5))
    suggested = []
    for now in (3, 5):
        found = report(now, num_samples=100, x=x)
        for name in ("w", "v"):
            minibatch = chunks[name].var(0, ddof=1).sum() * 2 / 40
            at = lambda b: (  # noqa: E731
                found[name].variance * ((2**now - 1) / (2**b - 1)) ** 2  # noqa: B023
            )
            assert found[name].bits == min(b for b in range(2, 9) if at(b) <= minibatch)
        suggested.append([int(found[name].bits) for name in ("w", "v")])
    assert min(suggested[0]) > 2 and max(suggested[0]) < 8
    assert np.abs(np.subtract(*suggested)).max() <= 1


def test_without_noise_there_is_none():
    found = gradient_noise(loss, FORWARD)(jax.random.key(0), PARAMS, X, num_samples=3)
    for noise in found.values():
        assert noise.variance == 0 and noise.snr == jnp.inf and noise.bits == 2
        assert noise.bias < 1e-9


@pytest.mark.parametrize("args", [(), (X[:1],), (X, jnp.ones(3))])
def test_without_a_common_axis_the_minibatch_is_unknown(args):
    fn = lambda p, *args: loss(p, X)  # noqa: E731
    found = gradient_noise(fn, noisy(3))(jax.random.key(0), PARAMS, *args)
    assert found["w"].bits == 8 and found["w"].variance > 0


def test_keys_flags_and_examples_that_do_not_divide():
    def fn(p, x, key, flag, *, scale):
        mask = jax.random.bernoulli(key, 0.8, x.shape)
        return loss(p, jnp.where(mask, x, 0.0)) * (scale if flag == "yes" else 0.0)

    given = X[:19], jax.random.key(7), "yes"
    run = gradient_noise(fn, noisy(3))
    of_key = lambda k: run(k, PARAMS, *given, scale=2.0, num_samples=8)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 2)
    one = jax.jit(of_key)(jax.random.split(jax.random.key(0), 2)[1])
    both = jax.jit(jax.vmap(of_key))(keys)
    assert one["w"].variance > 0
    for a, b in zip(*map(jax.tree.leaves, (one, both)), strict=True):
        np.testing.assert_allclose(b[1], a, rtol=1e-3, atol=1e-9)


def test_trees_of_flax_and_leaves_without_a_gradient():
    net = nn.Dense(4)
    params = net.init(jax.random.key(0), X)
    fn = lambda p, x: jnp.mean(net.apply({"params": p["params"]}, x) ** 2)  # noqa: E731
    tree = {**params, "steps": jnp.int32(3)}
    found = gradient_noise(fn, noisy(3))(jax.random.key(0), tree, X, num_samples=4)
    assert found["params"]["kernel"].variance > 0
    assert found["steps"].variance == 0 and found["steps"].bits == 2

    graph, state = nnx.split(nnx.Linear(5, 4, rngs=nnx.Rngs(0)))
    fn = lambda p, x: jnp.mean(nnx.merge(graph, nnx.State(p))(x) ** 2)  # noqa: E731
    params = nnx.to_pure_dict(state)
    found = gradient_noise(fn, noisy(3))(jax.random.key(0), params, X, num_samples=4)
    assert found["kernel"].variance > 0 and set(found) == set(params)


def test_each_shard_reports_its_own():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))

    def local(key, x):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        p = jax.lax.pcast(PARAMS, "data", to="varying")
        found = gradient_noise(loss, noisy(3))(key, p, x, num_samples=4)
        return jax.tree.map(lambda a: a[None], found)

    run = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
    )
    found = jax.jit(run)(jax.random.key(0), X)["w"]
    own = gradient_noise(loss, noisy(3))(
        jax.random.fold_in(jax.random.key(0), 1), PARAMS, X[16:], num_samples=4
    )["w"]
    np.testing.assert_allclose(found.variance[1], own.variance, rtol=1e-3)
    assert found.variance[0] != found.variance[1]


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_dtypes(dtype, x64):
    params = jax.tree.map(lambda a: a.astype(dtype), PARAMS)
    run = gradient_noise(loss, noisy(3))
    found = jax.eval_shape(run, jax.random.key(0), params, X.astype(dtype))
    wanted = jnp.promote_types(dtype, jnp.float32)
    assert {noise.variance.dtype for noise in found.values()} == {wanted}
    assert {noise.snr.dtype for noise in found.values()} == {wanted}
    assert {noise.bits.dtype for noise in found.values()} == {jnp.dtype(jnp.int32)}


def test_what_is_wrong_is_named():
    key, run = jax.random.key(0), gradient_noise(loss, noisy(3))
    with pytest.raises(TypeError, match=r"policy is NoneType None; wanted a Policy"):
        gradient_noise(loss, None)
    with pytest.raises(TypeError, match=r"key is int 0; wanted a typed key"):
        run(0, PARAMS, X)
    with pytest.raises(ValueError, match=r"num_samples is 1; wanted at least 2"):
        run(key, PARAMS, X, num_samples=1)
    with pytest.raises(TypeError, match=r"num_samples is .*; wanted a Python int"):
        jax.jit(run)(key, PARAMS, X, num_samples=5)
    vector = gradient_noise(lambda p, x: x @ p["w"], noisy(3))
    with pytest.raises(ValueError, match=r"fn returns float32\[32,6\]; wanted a real"):
        vector(key, PARAMS, X)
    pair = gradient_noise(lambda p, x: (loss(p, x), x), noisy(3))
    with pytest.raises(ValueError, match=r"fn returns tuple"):
        pair(key, PARAMS, X)


def test_the_scale_of_the_loss_does_not_matter():
    plain, small = (
        report(3, num_samples=8, fn=lambda p, x, c=c: c * loss(p, x))
        for c in (1.0, 2.0**-70)
    )
    for name in PARAMS:
        assert small[name].bits == plain[name].bits
        np.testing.assert_allclose(small[name].snr, plain[name].snr, rtol=1e-3)
