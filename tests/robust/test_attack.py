import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.robust import Attack, strongest
from jaxmethods.robust.attack import ascent

RUNS = Attack(
    x=jnp.arange(12.0).reshape(3, 2, 2),
    loss=jnp.array([[1.0, jnp.nan], [3.0, -2.0], [2.0, -1.0]]),
    robust=jnp.array([[True, True], [True, False], [True, True]]),
)


def test_strongest_takes_the_highest_loss_input_by_input():
    best = strongest(RUNS)
    assert np.array_equal(best.x, [RUNS.x[1, 0], RUNS.x[2, 1]])
    assert np.array_equal(best.loss, [3.0, -1.0])
    assert np.array_equal(best.robust, [True, False])
    assert strongest(RUNS._replace(robust=None)).robust is None


def test_strongest_of_one_is_that_one_and_composes():
    one = jax.tree.map(lambda leaf: leaf[1:2], RUNS)
    for got in (strongest(one), jax.jit(strongest)(one)):
        assert all(map(np.array_equal, got, (leaf[0] for leaf in one)))
    stacked = jax.tree.map(lambda leaf: leaf[None], RUNS)
    together = jax.vmap(strongest)(stacked)
    assert np.array_equal(together.loss[0], strongest(RUNS).loss)


@pytest.mark.parametrize(
    "attacks", [Attack(RUNS.x[0], RUNS.loss[0]), Attack(RUNS.x[:0], RUNS.loss[:0])]
)
def test_strongest_wants_a_stack(attacks):
    with pytest.raises(ValueError, match=r"loss float32.*vmap the attack over keys"):
        strongest(attacks)


def test_ascent_is_the_gradient_of_the_sum():
    x = jnp.arange(6.0).reshape(3, 2)
    losses, aux, gradient = ascent(lambda x: ((x**2).sum(1), "aux"), x)
    assert aux == "aux"
    assert np.array_equal(losses, [1, 13, 41])
    assert np.array_equal(gradient, 2 * x)
