"""How often a model is right: on the inputs as they are, and under attack."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..core import check_integer
from ..robust import apgd, pgd
from .levels import held
from .model import (
    Apply,
    check_labels,
    check_range,
    cross_entropy,
    logits_of,
    read_model,
)
from .radii import EPS, check_radii

PGD_STEPS = 20
APGD_STEPS = 100


class Accuracy(NamedTuple):
    """Shares of the inputs: right, and right under attack within each radius.

    Attributes:
        eps: The radii, ascending.
        clean: Right as they are.
        pgd: Right also where PGD ends, at this radius and at all smaller ones.
        apgd: Right also wherever APGD goes, with cross entropy and, of three classes or
            more, the difference of logits ratio.
        norm: "linf" or "l2".
    """

    eps: list[float]
    clean: float
    pgd: list[float]
    apgd: list[float]
    norm: str


def accuracy(
    apply: Apply,
    params: Any,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    eps: Sequence[float] = EPS,
    norm: str = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    batched: bool | None = None,
    chunk: int = 64,
    progress: bool = False,
) -> Accuracy:
    """Counts what a model gets right, as it is and under `robust.pgd` and `apgd`.

    PGD takes 20 steps of eps / 8 from the input itself and ends at the point of the
    highest loss met; APGD takes 100 steps for each objective. Both start at the input,
    so that the numbers need no key. An input that an attack turns at one radius counts
    as wrong at larger ones: the point that turned it lies within those too.

    Args:
        apply: `apply(params, x) -> logits`, of one input or of a batch.
        params: A pytree of arrays.
        inputs: (n, ...) floating.
        labels: (n,) integers.
        eps: Radii, in units of the inputs.
        norm: "linf" or "l2".
        bounds: The least and the greatest value of an entry; None for no limits.
        batched: Whether `apply` takes a batch; None: found out.
        chunk: How many inputs are attacked at once.
        progress: Whether to show on standard error how far it is.

    Returns:
        `Accuracy`. These are upper bounds of what holds within a radius; `certificates`
        gives lower ones.

    Raises:
        TypeError, ValueError: As `read_model`; labels that are no classes, radii that
            are no positive numbers, inputs outside of `bounds`.

    Example:
        >>> w = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        >>> x = jnp.array([[0.9, 0.1], [0.4, 0.6]])
        >>> apply = lambda params, x: x @ params
        >>> accuracy(apply, w, x, jnp.array([0, 1]), eps=[0.05, 0.2]).apgd
        [1.0, 0.5]

    References:
        Madry et al. 2018, arXiv:1706.06083; Croce, Hein 2020, arXiv:2003.01690.
    """
    model = read_model(apply, params, inputs, batched=batched)
    count = len(model.inputs)
    labels = check_labels(labels, count, model.num_classes)
    radii = check_radii(eps, norm)
    check_range(model.inputs, bounds)
    chunk = min(check_integer(chunk, "chunk", 1), count)
    objectives = ("ce", "dlr")[: 2 if model.num_classes > 2 else 1]
    levels = [(model.params, e) for e in radii]

    def shares(name: str, holds: Callable[..., Any], start: Any = None) -> Any:
        return held(
            jax.jit(holds),
            levels if start is not None else levels[:1],
            model.inputs,
            labels,
            chunk=chunk,
            start=start,
            label=name if progress else None,
        )

    attack = {"norm": norm, "bounds": limits(bounds)}
    (right,) = shares("clean accuracy", partial(is_right, model.apply))
    by_pgd = shares("PGD attack", partial(survives_pgd, model.apply, **attack), right)
    survives = partial(survives_apgd, model.apply, objectives=objectives, **attack)
    by_apgd = shares("APGD attack", survives, right)
    return Accuracy(
        radii,
        float(right.mean()),
        by_pgd.mean(1).tolist(),
        by_apgd.mean(1).tolist(),
        norm,
    )


def limits(bounds: tuple[float, float] | None) -> tuple[float, float]:
    """Bounds as an attack takes them."""
    return (-float("inf"), float("inf")) if bounds is None else bounds


def is_right(
    apply: Apply, level: tuple[Any, Any], inputs: jax.Array, labels: jax.Array
) -> jax.Array:
    """Whether each input gets its label; where a logit is NaN it does not.

    Args:
        apply: Of one input.
        level: (params, radius); the radius does not matter.
        inputs: (n, ...).
        labels: (n,).
    """
    return _reads(logits_of(apply, level[0], inputs), labels)


def _reads(logits: jax.Array, labels: jax.Array) -> jax.Array:
    # The argmax of NaNs is a class as well.
    return (jnp.argmax(logits, -1) == labels) & ~jnp.isnan(logits).any(-1)


def survives_pgd(
    apply: Apply,
    level: tuple[Any, Any],
    inputs: jax.Array,
    labels: jax.Array,
    *,
    norm: str = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> jax.Array:
    """Whether each input gets its label where PGD ends.

    Args:
        apply: Of one input.
        level: (params, radius).
        inputs: (n, ...).
        labels: (n,).
        norm: "linf" or "l2".
        bounds: Of an entry.
    """
    params, eps = level

    def loss(x: jax.Array) -> jax.Array:
        return jax.vmap(cross_entropy)(logits_of(apply, params, x), labels)

    attack = pgd(
        loss,
        inputs,
        eps=eps,
        step_size=eps / 8,
        num_steps=PGD_STEPS,
        norm=norm,
        bounds=bounds,
        keep_best=True,
    )
    return _reads(logits_of(apply, params, attack.x), labels)


def survives_apgd(
    apply: Apply,
    level: tuple[Any, Any],
    inputs: jax.Array,
    labels: jax.Array,
    *,
    objectives: Sequence[str],
    norm: str,
    bounds: tuple[float, float],
) -> jax.Array:
    """Whether each input gets its label wherever APGD goes, for every objective.

    Args:
        apply: Of one input.
        level: (params, radius).
        inputs: (n, ...).
        labels: (n,).
        objectives: Of "ce" and "dlr".
        norm: "linf" or "l2".
        bounds: Of an entry.
    """
    params, eps = level
    robust: list[Any] = [
        apgd(
            partial(logits_of, apply, params),
            inputs,
            labels,
            eps=eps,
            num_steps=APGD_STEPS,
            norm=norm,
            objective=objective,
            bounds=bounds,
        ).robust
        for objective in objectives
    ]
    return jnp.all(jnp.stack(robust), 0)
