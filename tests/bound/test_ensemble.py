"""Certified ensembles: what is certified holds, and no weights would certify more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxmethods.bound import Ball, crown, margins
from jaxmethods.bound.ensemble import (
    averaged,
    ensemble_margin,
    fit_weights,
    member_lines,
    upper_bound,
)

NORMS = (1, 2, np.inf)
DUAL = {1: np.inf, 2: 2, np.inf: 1}


def lines(seed, examples=7, classes=3, models=4, inputs=5, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    slopes = jax.random.normal(keys[0], (examples, classes, models, inputs), dtype)
    biases = jax.random.normal(keys[1], slopes.shape[:3], dtype) + 0.5
    return slopes, biases, jax.random.normal(keys[2], (examples, inputs), dtype)


def reached(weights, data, eps, p, objective):
    worst = np.asarray(ensemble_margin(weights, *data, eps, p=p)).min(1)
    return float(np.mean(np.minimum(worst, 1) if objective == "hinge" else worst))


def best_of_linear_programme(slopes, biases, x, eps, objective):
    """The largest value in the ball of the maximum norm, by scipy's HiGHS."""
    slopes, biases, x = (np.asarray(v, np.float64) for v in (slopes, biases, x))
    examples, classes, models, inputs = slopes.shape
    center = np.einsum("ectd,ed->ect", slopes, x) + biases
    # Variables: weights, each example's value, the absolute values of its slopes.
    norms = models + examples
    size = norms + examples * classes * inputs
    rows, limits = [], []

    def at_most(entries, limit):
        row = np.zeros(size)
        for where, what in entries:
            row[where] = what
        rows.append(row)
        limits.append(limit)

    for e in range(examples):
        if objective == "hinge":
            at_most([(models + e, 1.0)], 1.0)
        for c in range(classes):
            first = norms + (e * classes + c) * inputs
            part = slice(first, first + inputs)
            of_weights = (slice(0, models), -center[e, c])
            at_most([of_weights, (models + e, 1.0), (part, eps)], 0.0)
            for i in range(inputs):
                for sign in (1, -1):
                    slope = sign * slopes[e, c, :, i]
                    at_most([(slice(0, models), slope), (first + i, -1.0)], 0.0)
    cost = np.zeros(size)
    cost[models:norms] = -1 / examples
    total = np.zeros((1, size))
    total[0, :models] = 1
    free = [(0, None)] * models + [(None, None)] * examples
    solution = linprog(
        cost,
        np.array(rows),
        limits,
        total,
        [1.0],
        bounds=free + [(0, None)] * (size - norms),
    )
    assert solution.success
    return -solution.fun


@pytest.mark.parametrize(
    "objective, dtype", [("mean", jnp.float32), ("hinge", jnp.float64)]
)
def test_no_weights_do_better(x64, objective, dtype):
    for seed in range(3):
        data, eps = lines(seed, dtype=dtype), 0.2
        fit = fit_weights(*data, eps, objective=objective)
        best = best_of_linear_programme(*data, eps, objective)
        above = float(upper_bound(*data, eps, objective=objective))
        slack = 1e-3 * max(abs(best), 0.1)
        assert best - slack <= fit.value <= best + 1e-6
        assert best - 1e-5 <= above <= best + 0.05
        assert fit.weights.dtype == dtype and (fit.weights >= 0).all()
        assert float(fit.weights.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "p, objective", [(1, "mean"), (2, "hinge"), (2, "mean"), (np.inf, "hinge")]
)
def test_every_norm_against_random_weights_and_its_own_upper_bound(p, objective):
    data, eps = lines(7), 0.2
    fit = fit_weights(*data, eps, p=p, objective=objective)
    above = float(upper_bound(*data, eps, p=p, objective=objective))
    assert fit.value <= above <= fit.value + 0.05
    assert fit.value == pytest.approx(reached(fit.weights, data, eps, p, objective))
    tries = np.random.default_rng(0).dirichlet(np.ones(4), 300).astype(np.float32)
    margin = jax.jit(jax.vmap(lambda w: ensemble_margin(w, *data, eps, p=p)))
    worst = np.asarray(margin(np.concatenate([tries, np.eye(4, dtype=np.float32)])))
    worst = worst.min(2)
    values = (np.minimum(worst, 1) if objective == "hinge" else worst).mean(1)
    assert values.max() <= fit.value + 1e-4
    history = np.asarray(fit.history)
    assert (np.diff(history) >= 0).all() and history[-1] == fit.value


@pytest.mark.optimized
def test_the_upper_bound_where_examples_lie_at_the_cap_of_the_hinge():
    random = np.random.default_rng(1)
    biases = jnp.float32(random.normal(size=(200, 3, 1, 2)) + 1)

    def both(biases):
        data = jnp.zeros((3, 1, 2, 1)), biases, jnp.zeros((3, 1)), 0.1
        return fit_weights(*data).value, upper_bound(*data)

    value, above = jax.jit(jax.vmap(both))(biases)
    assert (value <= above).all() and (above <= value + 0.01).all()


@pytest.mark.parametrize("p", [2, np.inf])
def test_the_upper_bound_where_margins_are_far_above_the_cap(p):
    random = np.random.default_rng(0)
    bounded = jax.jit(lambda *data: upper_bound(*data, 0.01, p=p))
    for scale in (1e3, 1e5, 1e10, 1e20):
        for _ in range(6):
            slopes = scale * random.normal(size=(3, 2, 3, 4))
            biases = scale * (3 + random.uniform(size=(3, 2, 3)))
            above = bounded(*map(jnp.float32, (slopes, biases, np.zeros((3, 4)))))
            assert 1 <= above <= 1 + 1e-5


@pytest.mark.parametrize("p", NORMS)
def test_the_margin_is_the_least_value_of_the_sum_over_the_ball(p):
    data, eps = lines(1), 0.3
    slopes, biases, x = (np.asarray(v, np.float64) for v in data)
    weights = np.array([0.1, 0.2, 0.0, 0.7])
    got = np.asarray(ensemble_margin(jnp.float32(weights), *data, eps, p=p))
    slope = np.einsum("ectd,t->ecd", slopes, weights)
    center = np.einsum("ecd,ed->ec", slope, x) + biases @ weights
    want = center - eps * np.linalg.norm(slope, DUAL[p], axis=-1)
    # From below: what single precision may lose is taken off.
    assert (got <= want).all()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_single_precision_certifies_nothing_that_rounding_made():
    # Large terms that cancel: without an allowance some margins would be above.
    slopes, biases, x = (np.asarray(v, np.float64) for v in lines(2, 40, 3, 5, 50))
    biases = biases - np.einsum("ectd,ed->ect", slopes, 1e3 * x)
    single = [np.float32(v) for v in (slopes, biases, 1e3 * x)]
    weights = np.float32([0.3, 0.1, 0.2, 0.3, 0.1])
    got = np.asarray(ensemble_margin(weights, *single, 0.01), np.float64)
    slopes, biases, x = (v.astype(np.float64) for v in single)
    slope = np.einsum("ectd,t->ecd", slopes, weights.astype(np.float64))
    center = np.einsum("ecd,ed->ec", slope, x) + biases @ weights.astype(np.float64)
    assert (got <= center - 0.01 * np.abs(slope).sum(-1)).all()


def test_concave_and_never_below_the_sum_of_the_members_own_bounds():
    data, eps = lines(3), 0.4
    own = np.stack([ensemble_margin(e, *data, eps) for e in jnp.eye(4)], -1)
    rng = np.random.default_rng(1)
    for _ in range(20):
        v, w = rng.dirichlet(np.ones(4), 2).astype(np.float32)
        share = np.float32(rng.uniform())
        at = [
            np.asarray(ensemble_margin(u, *data, eps))
            for u in (v, w, share * v + (1 - share) * w)
        ]
        assert (at[2] >= share * at[0] + (1 - share) * at[1] - 1e-5).all()
        assert (at[0] >= own @ v - 1e-5).all()


@pytest.mark.parametrize("seed", [0, 36, 50])
def test_few_examples_reach_the_optimum_but_for_the_rounding_taken_off(seed):
    data = lines(seed, 1, 1, 8, 4)
    fit = fit_weights(*data, 0.5, objective="mean")
    best = best_of_linear_programme(*data, 0.5, "mean")
    assert best - 5e-5 <= fit.value <= best


@pytest.mark.parametrize("p", NORMS)
def test_every_scale_gives_the_weights_of_the_first(p):
    slopes, biases, x = lines(8)
    fit = jax.jit(lambda *data: fit_weights(*data, 0.2, p=p, objective="mean"))
    above = jax.jit(lambda *data: upper_bound(*data, 0.2, p=p, objective="mean"))
    first, limit = fit(slopes, biases, x), float(above(slopes, biases, x))
    for scale in (2.0**-100, 2.0**70, 2.0**121):
        data = scale * slopes, scale * biases, x
        again = fit(*data)
        assert np.array_equal(again.weights, first.weights)
        assert np.isclose(float(again.value) / scale, float(first.value), rtol=1e-6)
        assert np.isclose(float(above(*data)) / scale, limit, rtol=1e-6)
    assert above(0 * slopes, 0 * biases, x) == fit(0 * slopes, 0 * biases, x).value == 0


@pytest.mark.parametrize("scale", [1e-30, 1e20])
def test_the_hinge_at_extreme_scales(scale):
    slopes, biases, x = lines(9)
    data = scale * slopes, scale * biases, x
    value = float(fit_weights(*data, 0.2).value)
    assert value <= upper_bound(*data, 0.2) <= value + 0.05 * scale
    assert value <= 1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_sound_and_fitted_in_single(dtype):
    weights = jnp.array([0.1, 0.2, 0.3, 0.4], dtype)
    for scale in (1e-7, 1.0, 1e4):
        data = [v.astype(dtype) for v in lines(10)]
        data[:2] = [(scale * v).astype(dtype) for v in data[:2]]
        got = ensemble_margin(weights, *data, 0.1)
        assert got.dtype == dtype
        slopes, biases, x = (np.asarray(v, np.float64) for v in data)
        exact = np.asarray(weights, np.float64)
        slope = np.einsum("ectd,t->ecd", slopes, exact)
        want = np.einsum("ecd,ed->ec", slope, x) + biases @ exact
        want -= 0.1 * np.abs(slope).sum(-1)
        assert (np.asarray(got, np.float64) <= want).all()
    fit = fit_weights(*data, 0.1)
    assert fit.weights.dtype == fit.value.dtype == jnp.float32
    assert fit.value <= upper_bound(*data, 0.1)
    # A bound beyond the largest number is lowered to it, never infinite.
    large = jnp.full((1, 1, 1, 1), 6e4, jnp.float16)
    at = jnp.ones((1, 1), jnp.float16)
    top = ensemble_margin(jnp.full(1, 2.0, jnp.float16), large, large[0], at, 0.0)
    assert np.isfinite(top).all()


def test_no_gradient_passes_through_the_fit():
    slopes, biases, x = lines(11, 2, 1, 2, 2)
    assert not jax.grad(lambda b: fit_weights(slopes, b, x, 0.1).value)(biases).any()
    assert not jax.grad(lambda b: upper_bound(slopes, b, x, 0.1))(biases).any()


def net(seed, width):
    keys = jax.random.split(jax.random.key(seed), 2)
    first = jax.random.normal(keys[0], (5, width)) / 2
    second = jax.random.normal(keys[1], (width, 4)) / np.sqrt(width)
    return lambda x: jax.nn.relu(x @ first) @ second


@pytest.mark.parametrize("p", [2, np.inf])
def test_networks_of_different_shapes_keep_their_certificates(p):
    fns, weights, eps = [net(0, 8), net(1, 12)], jnp.array([0.4, 0.6]), 0.2
    x = jax.random.normal(jax.random.key(5), (3, 5))
    whole = averaged(fns, weights)
    labels = jnp.argmax(jax.vmap(whole)(x), 1)
    bound = ensemble_margin(
        weights, *member_lines(fns, x, labels, eps, p=p), x, eps, p=p
    )
    noise = jax.random.normal(jax.random.key(6), (500, 5))
    noise = jnp.where(p == 2, noise, jnp.sign(noise))
    points = eps * noise / jnp.linalg.norm(noise, p, axis=1, keepdims=True)
    one_graph = jax.vmap(lambda x, y: crown(margins(whole, y))(Ball(x, eps, p)).lower)
    graph = one_graph(x, labels)
    for e in range(3):
        rows = margins(whole, int(labels[e]))
        least = jax.vmap(rows)(x[e][None] + points).min(0)
        assert (bound[e] <= least).all() and (graph[e] <= least).all()
    assert (graph >= bound - 1e-5).all()  # as one graph it is never looser


def test_alone_copied_or_hopeless():
    slopes, biases, x = lines(4)
    one = fit_weights(slopes[:, :, :1], biases[:, :, :1], x, 0.1)
    assert one.weights.tolist() == [1.0]
    few = float(fit_weights(slopes, biases, x, 0.1).value)
    copied = [jnp.concatenate([v, v[:, :, :2]], 2) for v in (slopes, biases)]
    assert fit_weights(*copied, x, 0.1).value == pytest.approx(few, abs=2e-3)
    hopeless = fit_weights(slopes, biases - 100, x, 0.1)
    assert np.isfinite(hopeless.value) and hopeless.value < -50


def test_transforms_and_inputs_of_several_axes():
    slopes, biases, x = lines(5, inputs=6)
    data = slopes.reshape(*slopes.shape[:3], 2, 3), biases, x.reshape(-1, 2, 3)
    run = jax.jit(jax.vmap(lambda e: fit_weights(*data, e)))
    many = run(jnp.array([0.0, 0.1]))
    for i, eps in enumerate((0.0, 0.1)):
        alone = fit_weights(slopes, biases, x, eps)
        assert many.value[i] == pytest.approx(float(alone.value), abs=1e-3)

    def worst(weights):
        return ensemble_margin(weights, *data, 0.1).min()

    at = jnp.array([0.1, 0.2, 0.3, 0.4])
    towards = jnp.array([1.0, -1.0, 0.5, -0.5])
    slope = jax.grad(worst)(at) @ towards
    step = 1e-2
    difference = (worst(at + step * towards) - worst(at - step * towards)) / (2 * step)
    assert float(slope) == pytest.approx(float(difference), rel=1e-2, abs=1e-2)


def test_errors():
    slopes, biases, x = lines(6)
    with pytest.raises(ValueError, match=r"objective is 'median'"):
        fit_weights(slopes, biases, x, 0.1, objective="median")
    with pytest.raises(ValueError, match=r"biases are float32\[7,3,3\].*wanted"):
        fit_weights(slopes, biases[:, :, 1:], x, 0.1)
    with pytest.raises(ValueError, match=r"x is float32\[6,5\].*wanted \(7, 5\)"):
        fit_weights(slopes, biases, x[1:], 0.1)
    with pytest.raises(ValueError, match=r"eps is -0.1"):
        ensemble_margin(jnp.ones(4), slopes, biases, x, -0.1)
    with pytest.raises(ValueError, match=r"weights are float32\[3\].*\(4,\)"):
        ensemble_margin(jnp.ones(3), slopes, biases, x, 0.1)
    with pytest.raises(ValueError, match="wanted none below 0"):
        ensemble_margin(jnp.array([1.0, -1, 0, 0]), slopes, biases, x, 0.1)
    with pytest.raises(ValueError, match="model 2 on example 4 are not finite"):
        fit_weights(slopes.at[4, 1, 2, 0].set(jnp.nan), biases, x, 0.1)
    with pytest.raises(ValueError, match="model 1 on example 0 are not finite"):
        ensemble_margin(jnp.ones(4), slopes, biases.at[0, 0, 1].set(jnp.nan), x, 0.1)
    with pytest.raises(ValueError, match=r"eps is float32\[7\]; wanted one number"):
        fit_weights(slopes, biases, x, jnp.ones(7))
    with pytest.raises(ValueError, match="eps is inf; wanted a finite number"):
        ensemble_margin(jnp.ones(4), slopes, biases, x, np.inf)
    with pytest.raises(ValueError, match="p is 3"):
        fit_weights(slopes, biases, x, 0.1, p=3)
    with pytest.raises(TypeError, match="slopes is int32"):
        fit_weights(slopes.astype(int), biases, x, 0.1)
    with pytest.raises(ValueError, match="fns are empty"):
        member_lines([], x, jnp.zeros(7, int), 0.1)
    with pytest.raises(ValueError, match=r"\[4, 5\] classes"):
        fns = [lambda x: x[:4], lambda x: x]
        member_lines(fns, x, jnp.zeros(7, int), 0.1)
    with pytest.raises(ValueError, match="wanted one label for each example"):
        member_lines([net(0, 8)], x, jnp.zeros(6, int), 0.1)
    identity, x = lambda x: x, jnp.zeros((2, 3))
    for label in (3, -1):
        with pytest.raises(ValueError, match=f"labels hold {label} for 3 classes"):
            member_lines([identity], x, jnp.array([0, label]), 0.1)
    with pytest.raises(ValueError, match="x holds NaN"):
        member_lines([identity], x * jnp.nan, jnp.zeros(2, int), 0.1)
    assert np.array_equal(
        averaged(iter([identity]), jnp.full(1, 2.0))(x + 1), 2 * x + 2
    )
    with pytest.raises(ValueError, match="one for each function"):
        averaged([net(0, 8)], jnp.ones(2))
