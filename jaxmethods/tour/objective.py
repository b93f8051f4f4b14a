"""The loss: cross entropy of the images, and of the worst logits within eps."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .. import bound
from ..audit.model import Apply


def pixel_box(image: jax.Array, eps: jax.Array) -> bound.Box:
    """The images within `eps` of one image, pixels kept in [0, 1]."""
    return bound.Box(jnp.clip(image - eps, 0, 1), jnp.clip(image + eps, 0, 1))


def lower_margins(
    apply: Apply, params: Any, image: jax.Array, label: jax.Array, eps: jax.Array
) -> jax.Array:
    """What the logit of the label is ahead of each other one, at least (CROWN-IBP)."""
    margins = bound.margins(lambda x: apply(params, x), label)
    return bound.crown_ibp(margins, side="lower")(pixel_box(image, eps)).lower


def certified_loss(
    apply: Apply, params: Any, images: jax.Array, labels: jax.Array, eps: jax.Array
) -> jax.Array:
    """Mean certified cross entropy of a batch.

    The cross entropy of the logits `-(0, lower margins)`: an upper bound of the loss at
    every image within `eps`, and the natural loss where `eps` is 0 (Zhang et al. 2020,
    CROWN-IBP, arXiv 1906.06316, equation 10; our bound is the intersection with IBP's
    at each node, in place of a mixture).

    Args:
        apply: `apply(params, image) -> logits`, one image.
        params: Its parameters.
        images: (batch, height, width, channels) in [0, 1].
        labels: (batch,) int.
        eps: Radius of the perturbation, a scalar.
    """

    def one(image: jax.Array, label: jax.Array) -> jax.Array:
        lower = lower_margins(apply, params, image, label, eps)
        return jax.nn.logsumexp(jnp.append(-lower, 0.0))

    return jnp.mean(jax.vmap(one)(images, labels))


def radius(step: ArrayLike, num_steps: int, eps: float) -> jax.Array:
    """The radius at a step of the training.

    A tenth of the steps on clean images, then it grows linearly over half of them to a
    tenth above `eps`, so that the target lies inside what was trained.
    """
    progress = step / max(num_steps, 1)
    return 1.1 * eps * jnp.clip((progress - 0.1) / 0.5, 0.0, 1.0)
