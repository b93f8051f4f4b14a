"""verify decides, its counterexamples are true, and what it proves holds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound
from jaxmethods.bound import _verify
from jaxmethods.bound._counterexample import lowest_margin, lowest_point
from jaxmethods.bound._hidden_splits import HiddenSplits
from jaxmethods.bound._input_splits import InputSplits

KEYS = jax.random.split(jax.random.key(3), 3)
W = [
    jax.random.normal(k, shape)
    for k, shape in zip(KEYS, [(2, 6), (6, 6), (6, 3)], strict=True)
]
X = jnp.array([0.4, -0.3])


def net(x):
    return jax.nn.relu(jax.nn.relu(x @ W[0] + 0.1) @ W[1]) @ W[2]


LABEL = int(jnp.argmax(net(X)))


def least_margin(radius, n=201):
    """The least margin on a fine grid of the square."""
    side = np.linspace(-radius, radius, n, dtype=np.float32)
    points = X[None] + jnp.asarray(list(itertools.product(side, side)))
    return float(jax.vmap(bound.margins(net, LABEL))(points).min())


def true_radius():
    low, high = 0.0, 4.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if least_margin(middle) > 0 else (low, middle)
    return low


RADIUS = true_radius()


@pytest.mark.parametrize("search", [InputSplits, HiddenSplits])
def test_decides_close_to_the_true_radius_either_way_of_cutting(monkeypatch, search):
    monkeypatch.setattr(_verify, "_searches", lambda region: [search])
    inside = bound.verify(net, bound.Ball(X, 0.97 * RADIUS), LABEL, time_limit=60.0)
    assert inside.status == "verified"
    assert 0 < inside.margin <= least_margin(0.97 * RADIUS)
    outside = bound.verify(net, bound.Ball(X, 1.05 * RADIUS), LABEL, time_limit=60.0)
    assert outside.status == "falsified" and outside.margin <= 0
    point = outside.counterexample
    assert float(jnp.abs(point - X).max()) <= 1.05 * RADIUS * (1 + 1e-6)
    assert int(jnp.argmax(net(point))) != LABEL


def test_verdicts_get_better_until_the_last():
    steps = list(
        bound.verifying(net, bound.Ball(X, 0.97 * RADIUS), LABEL, batch_size=4)
    )
    margins = [step.margin for step in steps]
    assert margins == sorted(margins) and steps[-1].status == "verified"
    assert [step.method for step in steps[:2]] == ["ibp", "crown"]


def test_a_wrong_label_is_falsified_by_the_center():
    got = bound.verify(net, bound.Ball(X, 0.0), (LABEL + 1) % 3)
    assert got.status == "falsified" and got.method == "attack"


def test_time_runs_out_as_unknown_with_the_best_bound():
    got = bound.verify(net, bound.Ball(X, 0.97 * RADIUS), LABEL, time_limit=1e-6)
    assert got.status == "unknown" and got.counterexample is None
    assert got.margin <= least_margin(0.97 * RADIUS)


def test_progress_is_shown(capsys):
    bound.verify(net, bound.Ball(X, 0.01), LABEL, progress=True)
    assert "margin" in capsys.readouterr().err


@pytest.mark.parametrize("p", [1, 2])
def test_other_balls_are_cut_inside(p):
    got = bound.verify(net, bound.Ball(X, RADIUS, p), LABEL, time_limit=60.0)
    assert got.status == "verified"  # an l1 or l2 ball lies in that of linf


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_lowest_point_of_a_ball(p):
    ball, slope = bound.Ball(jnp.zeros(3), 2.0, p), jnp.array([3.0, 0.0, -4.0])
    want = {1: [0, 0, 2], 2: [-1.2, 0, 1.6], np.inf: [-2, 0, 2]}[p]
    got = lowest_point(ball, slope)
    np.testing.assert_allclose(got @ slope, jnp.array(want) @ slope, rtol=1e-6)
    assert float(jnp.linalg.norm(got, p)) <= 2.0 * (1 + 1e-6)


def test_search_finds_the_minimum_of_a_bowl():
    bowl = lambda x: jnp.stack([jnp.sum((x - 0.3) ** 2) - 0.01, x.sum() + 9])  # noqa: E731
    low, point = lowest_margin(bowl, bound.Ball(jnp.zeros(3), 1.0))
    assert float(low) < 0 and float(jnp.abs(point - 0.3).max()) < 0.1


@pytest.mark.parametrize(
    "call, error, hint",
    [
        (lambda: bound.verify(net, X, LABEL), ValueError, r"region is float32\["),
        (
            lambda: jax.jit(lambda x: bound.verify(net, bound.Ball(x, 0.1), 0))(X),
            TypeError,
            "verify got traced values.*call it outside",
        ),
        (lambda: bound.verify(net, bound.Ball(X, -1.0), LABEL), ValueError, "radius"),
        (lambda: bound.verify(net, bound.Ball(X, 0.1), 7), ValueError, "label is 7"),
        (
            lambda: bound.verify(net, bound.Ball(X, 0.1), 0, time_limit=0.0),
            ValueError,
            "time_limit is 0.0",
        ),
        (
            lambda: bound.verify(net, bound.Ball(X, 0.1), 0, time_limit="1"),
            TypeError,
            "time_limit is str '1'; wanted a real number",
        ),
        (
            lambda: bound.verify(net, bound.Ball(X, 0.1), 0, batch_size=1),
            ValueError,
            "batch_size is 1",
        ),
    ],
)
def test_errors(call, error, hint):
    with pytest.raises(error, match=hint):
        call()
