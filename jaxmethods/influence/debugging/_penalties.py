"""What holds a fine-tuned model near the one it started from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._chunks import sum_chunks
from ._sets import LabelledSet, Loss, take


def l2_ball(center: Any, radius: jax.Array) -> Callable[[Any], Any]:
    """The projection of parameters on a ball: the nearest point of it, by all leaves.

    Inside they stay what they are, to the bit; outside the distance becomes `radius`.
    """

    def project(params: Any) -> Any:
        offset = jax.tree.map(jnp.subtract, params, center)
        distance = jnp.sqrt(_squared_norm(offset))
        outside = distance > radius
        scale = radius / jnp.where(outside, distance, 1)

        def pull(x: jax.Array, c: jax.Array, away: jax.Array) -> jax.Array:
            return jnp.where(outside, c + scale * away, x).astype(x.dtype)

        return jax.tree.map(pull, params, center, offset)

    return project


def l2_penalty(center: Any, weight: jax.Array) -> Callable[[Any], jax.Array]:
    """`weight` * |params - center|^2."""
    return lambda params: (
        weight * _squared_norm(jax.tree.map(jnp.subtract, params, center))
    )


def fisher_penalty(
    center: Any, fisher: Any, weight: jax.Array
) -> Callable[[Any], jax.Array]:
    """`weight` * sum of fisher * (params - center)^2."""

    def penalty(params: Any) -> jax.Array:
        parts = jax.tree.map(
            lambda f, x, c: jnp.sum(f * (x - c) ** 2), fisher, params, center
        )
        return weight * sum(jax.tree.leaves(parts))

    return penalty


def kl_penalty(
    logits: Callable[[Any, Any], jax.Array], center: Any, weight: jax.Array
) -> Callable[[Any, Any], jax.Array]:
    """`weight` * mean over inputs of KL(old || new model), on (params, inputs)."""

    def penalty(params: Any, inputs: Any) -> jax.Array:
        old = jax.lax.stop_gradient(jax.nn.log_softmax(logits(center, inputs)))
        new = jax.nn.log_softmax(logits(params, inputs))
        # A class that the old model rules out costs nothing; 0 * inf would be NaN.
        parts = jnp.where(jnp.isneginf(old), 0, jnp.exp(old) * (old - new))
        return weight * jnp.mean(jnp.sum(parts, -1))

    return penalty


def diagonal_fisher(loss: Loss, params: Any, some: LabelledSet) -> Any:
    """The mean of each parameter's squared derivative, by the set's own labels."""
    n = some[1].shape[0]

    def squares(examples: LabelledSet, weights: jax.Array) -> Any:
        gradients = jax.vmap(jax.grad(loss), (None, 0))(params, examples)
        return jax.tree.map(lambda g: jnp.tensordot(weights, g * g, 1), gradients)

    return sum_chunks(squares, some, jnp.full(n, 1 / n))


def sample(examples: Any, key: jax.Array, number: int) -> Any:
    """Examples drawn uniformly, with replacement."""
    n = jax.tree.leaves(examples)[0].shape[0]
    return take(examples, jax.random.randint(key, (number,), 0, n))


def _squared_norm(tree: Any) -> jax.Array:
    # Half precision would overflow at a length of 256.
    wide = [
        x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in jax.tree.leaves(tree)
    ]
    return sum((jnp.sum(x * x) for x in wide), jnp.float32(0))
