"""Minibatches and optimizers: visits, and a diagonal between the gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.influence import (
    adam_preconditioner,
    aggregate,
    self_influence,
    tracin,
)
from tests.influence.definition import assert_close, at, build, draw, gradients

ALL = {"tracin": tracin, "aggregate": aggregate, "self_influence": self_influence}


def scores(name, **options):
    """The scores of a member."""
    loss, checkpoints, rates, train, test = build("dense")
    sets = (train,) if name == "self_influence" else (train, test)
    return ALL[name](loss)(checkpoints, rates, *sets, **options)


@pytest.mark.parametrize("name", ALL)
def test_visits_weigh_what_an_example_did_at_each_checkpoint(name):
    visits = np.asarray([[0.5, 0.25, 0.0, 1.0, 2.0], [1.0, 0.0, 3.0, 0.5, 0.25]])
    loss, checkpoints, _, *sets = build("dense")
    sets = sets[:1] if name == "self_influence" else sets
    score = jax.jit(ALL[name](loss))

    def at_rates(*rates, **options):
        return np.asarray(score(checkpoints, np.asarray(rates), *sets, **options))

    want = visits[0] * at_rates(0.5, 0.0) + visits[1] * at_rates(0.0, 0.25)
    assert_close(at_rates(0.5, 0.25, visits=visits), want, 1e-5)
    both = at_rates(0.5, 0.25, visits=visits[[0, 0]])
    assert_close(at_rates(0.5, 0.25, visits=visits[0]), both, 1e-6)


CASES = [
    ("tracin", "dense"),
    ("tracin", "loops_and_look_ups"),
    ("tracin", "convolutions_and_pools"),
    ("aggregate", "dense"),
    ("self_influence", "dense"),
]


@pytest.mark.parametrize("name, loss_name", CASES)
def test_a_preconditioner_stands_between_the_gradients(name, loss_name):
    loss, checkpoints, rates, train, test = build(loss_name)
    diagonal = {k: np.abs(np.sin(7 * x)) + (x > 0) for k, x in numbers(checkpoints)}
    want = 0
    for k, rate in enumerate(np.asarray(rates)):
        flat = np.concatenate([x[k].ravel() for _, x in sorted(diagonal.items())])
        right, left = gradients(loss, at(checkpoints, k), train, test)
        left = right if name == "self_influence" else left
        want = want + rate * (left * flat) @ right.T
    reduce = {"tracin": np.asarray, "self_influence": np.diag, "aggregate": sum}[name]
    sets = (train,) if name == "self_influence" else (train, test)
    score = jax.jit(functools.partial(ALL[name](loss), checkpoints, rates))
    assert_close(score(*sets, precondition=diagonal), reduce(want))
    if loss_name == "dense":
        ones = {k: np.ones_like(x) for k, x in numbers(checkpoints)}
        assert_close(score(*sets, precondition=ones), score(*sets), 1e-5)


def numbers(checkpoints):
    return [(k, np.asarray(x)) for k, x in checkpoints.items()]


def test_a_preconditioner_of_chosen_parameters_projected_and_in_half_precision():
    loss, checkpoints, rates, train, test = build("dense")
    checkpoints = checkpoints | {"steps": jnp.arange(2)}
    diagonal = {k: 0.5 + x * x for k, x in numbers(checkpoints)}
    args = checkpoints, rates, train, test
    listed = [at(diagonal, k) for k in range(2)]
    whole = tracin(loss)(*args, precondition=listed)
    part, rest = (
        tracin(loss, where=where)(*args, precondition=diagonal)
        for where in ([("w",)], lambda path: path != ("w",))
    )
    assert_close(part + rest, whole, 1e-5)
    # Room for all numbers: exact.
    projected = tracin(loss, project=40)
    got = projected(jax.random.key(0), *args, precondition=diagonal)
    assert_close(got, whole, 1e-5)
    halve = functools.partial(
        jax.tree.map, lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x
    )
    got = tracin(loss)(halve(checkpoints), *args[1:], precondition=diagonal)
    assert got.dtype == jnp.float32
    assert_close(got, whole, 0.1)


def test_the_preconditioner_of_adam_is_the_step_that_adam_takes():
    # With no momentum a step of Adam is -rate * D * gradient.
    b2, eps, rate = 0.9, 0.03, 0.5
    optimizer = optax.chain(
        optax.clip_by_global_norm(1e9), optax.adam(rate, b1=0.0, b2=b2, eps=eps)
    )
    params = {"w": draw(0, (3, 2)), "b": draw(1, (2,))}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for seed in range(3):
        gradient = jax.tree.map(lambda x, seed=seed: draw(seed + 2, x.shape), params)
        step, state = update(gradient, state, params)
    diagonal = adam_preconditioner(state, b2=b2, eps=eps)
    want = jax.tree.map(lambda d, g: -rate * d * g, diagonal, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), want, step)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    several = jax.vmap(functools.partial(adam_preconditioner, b2=b2, eps=eps))(stacked)
    assert several["w"].shape == (2, 3, 2)


def test_the_scores_of_a_step_of_adam_are_the_fall_of_the_loss():
    # At the first step Adam's momentum is the gradient: nothing is left aside.
    loss, checkpoints, _, train, test = build("dense")
    params, adam = at(checkpoints, 0), optax.adam(1.0)

    @jax.jit
    def step(params):
        mean = lambda p: jax.vmap(loss, (None, 0))(p, train).mean()  # noqa: E731
        updates, state = adam.update(jax.grad(mean)(params), adam.init(params))
        losses = lambda p: jax.vmap(loss, (None, 0))(p, test)  # noqa: E731
        options = {
            "visits": jnp.full(5, 1 / 5),
            "precondition": [adam_preconditioner(state)],
        }
        scores = tracin(loss)([params], jnp.ones(1), train, test, **options)
        return -jax.jvp(losses, (params,), (updates,))[1], scores.sum(1)

    fall, found = step(params)
    assert_close(found, fall, 1e-4)


def test_an_entry_of_zero_is_a_parameter_that_steps_leave_alone():
    loss, checkpoints, rates, train, test = build("dense")
    diagonal = {k: np.full(np.shape(x), k != "b") * 1.0 for k, x in checkpoints.items()}
    args = checkpoints, rates, train, test
    want = jax.jit(tracin(loss, where=lambda path: path != ("b",)))(*args)
    assert_close(tracin(loss)(*args, precondition=diagonal), want, 1e-5)


def test_bad_preconditioners():
    loss, checkpoints, rates, train, test = build("dense")
    score = functools.partial(tracin(loss), checkpoints, rates, train, test)
    ones = jax.tree.map(jnp.ones_like, checkpoints)
    with pytest.raises(ValueError, match=r"precondition has the structure .*same tree"):
        score(precondition={"w": ones["w"]})
    with pytest.raises(ValueError, match=r"\('b',\) is float32\[1,4\] at precondition"):
        score(precondition=jax.tree.map(lambda x: x[:1], ones))
    with pytest.raises(ValueError, match=r"precondition \('b',\) .*with -1\.0 in it"):
        score(precondition=ones | {"b": -ones["b"]})
    with pytest.raises(ValueError, match=r"precondition \('v',\) .*with inf in it"):
        score(precondition=ones | {"v": ones["v"] / 0})
    with pytest.raises(ValueError, match="a tuple with 0 states of Adam in it"):
        adam_preconditioner(optax.sgd(0.1).init({"w": jnp.ones(2)}))
    with pytest.raises(ValueError, match="count is 0: Adam has taken no step"):
        adam_preconditioner(optax.adam(0.1).init({"w": jnp.ones(2)}))


@pytest.mark.parametrize("name", ALL)
def test_bad_visits(name):
    for bad, hint in (
        (jnp.ones(4), r"float32\[4\]; wanted \(5,\), one number a training example"),
        (jnp.ones((3, 5)), r"float32\[3,5\]; wanted .*\(2, 5\), a row a checkpoint"),
        (jnp.float32(1), r"float32\[\]; wanted"),
        (-jnp.ones(5), r"with -1\.0 in it; wanted finite numbers of 0 or more"),
        (jnp.full(5, jnp.inf), "with inf in it; wanted finite"),
    ):
        with pytest.raises(ValueError, match=f"visits .*{hint}"):
            scores(name, visits=bad)


def test_numbers_that_are_none():
    loss = lambda p, x: jnp.sum(p["w"] * x)  # noqa: E731
    args = [{"w": jnp.ones(2)}], [1.0], jnp.ones((3, 2)), jnp.ones((2, 2))
    with pytest.raises(TypeError, match=r"visits is .*wanted real"):
        tracin(loss)(*args, visits=1j * jnp.ones(3))
    with pytest.raises(TypeError, match=r"learning_rates is .*wanted real"):
        tracin(loss)(args[0], jnp.asarray([1j]), *args[2:])
    state = optax.rmsprop(1.0).init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="wanted one: pass the state"):
        adam_preconditioner(state)
    with pytest.raises(ValueError, match=r"b2 is 1\.0"):
        adam_preconditioner(state, b2=1.0)


def test_parameters_that_are_not_used_score_zero_in_every_way():
    loss = lambda p, x: jnp.sum(p["w"] * x)  # noqa: E731
    point = [{"w": jnp.ones(2), "z": jnp.ones(2)}] * 2
    train, test = jnp.ones((8, 2)), jnp.ones((3, 2))
    run = tracin(loss, where=[("z",)])
    for some in (train, iter([train[:5], train[5:]])):
        got = run(point, [0.1, 0.2], some, test)
        np.testing.assert_array_equal(got, np.zeros((3, 8)))
