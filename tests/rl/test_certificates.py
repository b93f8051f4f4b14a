"""Certificates: never above what is reached, exact for linear functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods import rl

from .agents import EPS, STATES, apply, mean, mesh, points, smooth_mean

METHODS = ("ibp", "forward", "crown_ibp", "crown", "alpha_crown")
NEAR = jnp.stack([points(s, EPS) for s in STATES])


@functools.cache
def margins(method):
    return jax.jit(jax.vmap(rl.action_margin(mean, method=method), (0, None)))


def worst_lead(fn, state, near):
    """The least lead over the points of the greedy action at the state."""
    best = fn(state).argmax()
    values = jax.vmap(fn)(near)
    others = jnp.where((jnp.arange(values.shape[1]) == best)[None], -jnp.inf, values)
    return jnp.min(values[:, best] - others.max(1))


@pytest.mark.parametrize("method", METHODS)
def test_no_point_of_the_box_has_a_smaller_lead(method):
    got = margins(method)(STATES, EPS)
    reached = jnp.stack(
        [worst_lead(mean, s, n) for s, n in zip(STATES, NEAR, strict=True)]
    )
    assert np.all(got <= reached)
    assert np.all(got >= margins("ibp")(STATES, EPS) - 1e-5)
    assert np.any(got > 0)  # there is something to certify, and it is


def test_closed_forms_of_linear_functions():
    weight = np.random.default_rng(2).normal(size=(4, 3)).astype("float32")
    state, fn = STATES[0], lambda s: s @ weight
    z, best = np.asarray(fn(state)), int(fn(state).argmax())
    leads = z[best] - z - np.abs(weight - weight[:, [best]]).T @ EPS
    got = jax.jit(rl.action_margin(fn))(state, EPS)
    np.testing.assert_allclose(got, np.delete(leads, best).min(), rtol=1e-4, atol=1e-5)
    spread = np.abs(weight).T @ EPS
    got = jax.jit(rl.action_change(fn))(state, EPS)
    np.testing.assert_allclose(got, spread, rtol=1e-4)
    got = jax.jit(rl.action_change(fn, squash=jnp.tanh))(state, EPS)
    high, low = np.tanh(z + spread) - np.tanh(z), np.tanh(z) - np.tanh(z - spread)
    np.testing.assert_allclose(got, np.maximum(high, low), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("squash", [None, jnp.tanh])
def test_no_action_changes_more(squash):
    own = squash or (lambda v: v)
    reached = jnp.stack(
        [
            jnp.abs(own(jax.vmap(smooth_mean)(n)) - own(smooth_mean(s))[None]).max(0)
            for s, n in zip(STATES, NEAR, strict=True)
        ]
    )
    change = rl.action_change(smooth_mean, squash=squash)
    got = jax.jit(jax.vmap(change, (0, None)))(STATES, EPS)
    assert np.all(got >= reached) and np.all(got <= 5 * reached)


def test_certificates_grow_and_respect_bounds():
    inside = jnp.clip(STATES, 0, 1)
    wide = margins("crown")(inside, EPS)
    assert np.all(wide <= margins("crown")(inside, EPS / 2))
    clipped = rl.action_margin(mean, bounds=(0.0, 1.0))
    got = jax.jit(jax.vmap(clipped, (0, None)))(inside, EPS)
    assert np.all(got >= wide - 1e-5) and np.any(got > wide + 1e-3)


def test_golden_hopper(shared):
    g = np.load(shared / "goldens" / "25-sa-mdp-agent.npz")
    params = [(g[f"hopper_sa.w{i}"], g[f"hopper_sa.b{i}"]) for i in range(3)]
    states = jnp.asarray(g["hopper_sa.x"][:4], "float32")
    eps = (g["hopper_sa.eps"] * g["hopper_sa.state_std"]).astype("float32")
    params = jax.tree.map(lambda v: jnp.asarray(v, "float32"), params)
    actor = lambda s: apply(params, s)  # noqa: E731
    change = rl.action_change(actor, squash=jnp.tanh, method="crown")
    got = jax.jit(jax.vmap(change, (0, None)))(states, eps)
    action = np.tanh(jax.vmap(actor)(states))
    ends = [np.tanh(g[f"hopper_sa.CROWN.{end}"][:4]) for end in ("lb", "ub")]
    assert np.all(got <= np.maximum(ends[1] - action, action - ends[0]) + 1e-4)
    moved = jax.vmap(actor)(states + eps[None]) - jax.vmap(actor)(states)
    assert np.all(got > 0) and np.all(jnp.abs(jnp.tanh(moved)) < 1)


def test_shard_map_over_states():
    spec = P("data")
    sharded = jax.shard_map(
        jax.vmap(rl.action_margin(mean, method="crown_ibp"), (0, None)),
        mesh=mesh(),
        in_specs=(spec, P()),
        out_specs=spec,
    )
    got = jax.jit(sharded)(STATES, EPS)
    np.testing.assert_allclose(got, margins("crown_ibp")(STATES, EPS), rtol=1e-4)


S = np.zeros(4, np.float32)
ERRORS = {
    "method": (lambda: rl.action_margin(mean, method="lirpa"), "'lirpa'.*crown"),
    "change": (lambda: rl.action_change(mean, method="lirpa"), "'lirpa'.*crown"),
    "eps": (lambda: rl.action_margin(mean)(S, -1.0), "eps is -1"),
    "shape of eps": (
        lambda: rl.action_change(mean)(S, np.ones(2)),
        r"eps has shape \(2,\) for a state of shape \(4,\)",
    ),
    "one action": (lambda: rl.action_margin(lambda s: s[:1])(S, 0.1), "two classes"),
    "scalar": (
        lambda: rl.action_change(jnp.sum)(S, 0.1),
        r"actor\(state\) is .*\(A,\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, hint = ERRORS[name]
    with pytest.raises(ValueError, match=hint):
        call()
