"""Clean, attacked and certified accuracy over a range of radii."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..data import Images
from ..robust import pgd
from .compiling import compiled
from .objective import Apply, cross_entropy, lower_margins
from .progress import progress

_CHUNK = 256
_ATTACK_STEPS = 20


class Accuracy(NamedTuple):
    """Shares of a test set: right, right under attack, certified; one a radius."""

    eps: list[float]
    clean: float
    attacked: list[float]
    certified: list[float]


def chunks(images: Images, size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Pieces of one shape: the last is padded, and the mask says what is real."""
    for start in range(0, len(images.labels), size):
        part = [a[start : start + size] for a in images]
        short = size - len(part[1])
        mask = np.arange(size) < size - short
        padded = [np.concatenate([a, np.repeat(a[:1], short, 0)]) for a in part]
        yield (*padded, mask)


def accuracy_meter(
    apply: Apply, params: Any, test: Images, eps: list[float]
) -> Callable[[Any], Accuracy]:
    """Counts, over a test set, what a network gets right at each radius.

    Attacked: PGD in the linf ball, 20 steps of eps / 8 from the image itself; right
    means right at the end point of the highest loss met. Certified: all lower margins
    of CROWN-IBP positive, over the ball clipped to [0, 1].

    Args:
        apply: `apply(params, image) -> logits` of one image.
        params: Parameters of the shapes to come.
        test: What to count over.
        eps: The radii.

    Returns:
        `measure(params) -> Accuracy`, its programs compiled already.
    """
    like = params, *next(chunks(test, _CHUNK)), np.float32(0)
    clean, attacked, certified = (
        compiled(partial(_count, apply, holds), *like)
        for holds in (_is_right, _survives, _is_certified)
    )
    total = len(test.labels)
    count = -(-total // _CHUNK) * (1 + 2 * len(eps))

    def measure(params: Any) -> Accuracy:
        sums = np.zeros((3, len(eps)))

        def work() -> Iterator[None]:
            for piece in chunks(test, _CHUNK):
                sums[0] += clean(params, *piece, np.float32(0))
                yield
                for row, fn in ((1, attacked), (2, certified)):
                    for k, e in enumerate(eps):
                        sums[row, k] += fn(params, *piece, np.float32(e))
                        yield

        for _ in progress(work(), "accuracy and certificates", count):
            pass
        shares = sums / total
        return Accuracy(eps, float(shares[0, 0]), *shares[1:].tolist())

    return measure


def _count(
    apply: Apply,
    holds: Callable[..., jax.Array],
    params: Any,
    x: jax.Array,
    y: jax.Array,
    mask: jax.Array,
    eps: jax.Array,
) -> jax.Array:
    """How many real examples of a chunk satisfy a predicate."""
    return jnp.sum(holds(apply, params, x, y, eps) & mask)


def _logits(apply: Apply, params: Any, images: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: apply(params, x))(images)


def _is_right(
    apply: Apply, params: Any, images: jax.Array, labels: jax.Array, eps: jax.Array
) -> jax.Array:
    del eps
    return jnp.argmax(_logits(apply, params, images), -1) == labels


def _survives(
    apply: Apply, params: Any, images: jax.Array, labels: jax.Array, eps: jax.Array
) -> jax.Array:
    def loss(x: jax.Array) -> jax.Array:
        return jax.vmap(cross_entropy)(_logits(apply, params, x), labels)

    attack = pgd(
        loss,
        images,
        eps=eps,
        step_size=eps / 8,
        num_steps=_ATTACK_STEPS,
        keep_best=True,
    )
    return jnp.argmax(_logits(apply, params, attack.x), -1) == labels


def _is_certified(
    apply: Apply, params: Any, images: jax.Array, labels: jax.Array, eps: jax.Array
) -> jax.Array:
    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.all(lower_margins(apply, params, x, y, eps) > 0)

    return jax.vmap(one)(images, labels)
