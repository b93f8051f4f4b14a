"""Costs count what operations put out, in loops once a round."""

import jax
import jax.numpy as jnp

from jaxmethods.audit.cost import Cost, cost


def test_operations_count_wherever_they_are():
    x = jnp.zeros((2, 3))
    step = jax.jit(lambda x: jnp.cos(jnp.sin(x)))
    assert cost(step, x) == Cost(12, 6)

    def looped(x):
        return jax.lax.scan(lambda y, _: (step(y), y.sum()), x, length=5)

    # Besides twelve a round for the steps there is one for the sum.
    assert cost(looped, x) == Cost(5 * 13, 6 + 5)  # what the loop puts out at its end

    def either(flag, x):
        return jax.lax.cond(flag, jnp.sin, lambda x: jnp.cos(x) @ x.T @ x, x)

    found = cost(either, True, x)
    assert found.largest == 6 and found.entries >= 6 + 6 + 6 + 4 + 6


def test_a_loop_of_unknown_length_counts_once():
    def body(x):
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x)

    assert cost(body, jnp.zeros(4)) == Cost(1 + 1 + 4, 4)
