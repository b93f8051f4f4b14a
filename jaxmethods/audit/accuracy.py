"""How often a model is right: on the inputs as they are, and under attack."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..core import check_integer
from ..influence.faster import faster
from ..robust import pgd
from ..robust.apgd import OBJECTIVES, is_robust
from .compiling import on_cpu, quick
from .cost import Cost, cost
from .levels import held
from .model import (
    Apply,
    Model,
    check_labels,
    check_range,
    cross_entropy,
    logits_of,
    read_model,
)
from .radii import check_radii

PGD_STEPS = 20
APGD_STEPS = 100
_LEAD = 8.0
# Entries of all operations on all inputs: with fewer a faster program does not make up
# for the time that it takes longer to compile.
_SMALL = 2**24
# Entries of the largest array of a model, over the inputs attacked at once: in the
# caches of a CPU a gradient takes less time.
_CACHED = 2**17


class Accuracy(NamedTuple):
    """Shares of the inputs: right, and right under attack within each radius.

    Attributes:
        eps: The radii, ascending.
        clean: Right as they are.
        pgd: Right also where PGD ends, at this radius and at all smaller ones.
        apgd: Right also wherever APGD goes, with cross entropy and, of three classes or
            more, the difference of logits ratio.
        norm: "linf" or "l2".
        blind: Right, turned by no attack, and without a gradient of the loss there (all
            of it 0 or NaN): attacks could not move them, and say nothing of them.
    """

    eps: list[float]
    clean: float
    pgd: list[float]
    apgd: list[float]
    norm: str
    blind: float = 0.0


def accuracy(
    apply: Apply,
    params: Any,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    eps: Sequence[float] | None = None,
    norm: str = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    batched: bool | None = None,
    chunk: int = 64,
    progress: bool = False,
) -> Accuracy:
    """Counts what a model gets right, as it is and under `robust.pgd` and `apgd`.

    PGD takes 20 steps of eps / 8 from the input itself and ends at the point of the
    highest cross entropy met; APGD takes 100 steps for each objective. Where a model
    is so sure of a label that floats lose its cross entropy, the logits of that input
    are divided for the attack, such that at its start the label leads by 8. Both start
    at the input, so that the numbers need no key. An input that an attack turns at one
    radius counts as wrong at larger ones: the point that turned it lies within those
    too.

    Args:
        apply: `apply(params, x) -> logits`, of one input or of a batch.
        params: A pytree of arrays.
        inputs: (n, ...) floating.
        labels: (n,) integers.
        eps: Radii, in units of the inputs; None: those of `AuditConfig`.
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
            are no positive numbers, inputs outside of `bounds`. ValueError also where
            gradients are 0 or NaN at all inputs that are right: attacks see nothing.

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
    plain = cost(model.apply, model.params, model.inputs[0])
    if on_cpu():
        chunk = min(chunk, max(1, _CACHED // plain.largest))
    follows, climbs, sees = _programs(model, plain, norm, limits(bounds))
    # Of two classes the ratio has none to compare with.
    goals = range(min(model.num_classes - 1, len(OBJECTIVES)))

    def shares(name: str, holds: Any, levels: Sequence[Any], **how: Any) -> Any:
        text = name if progress else None
        data = model.inputs, labels
        return held(holds, levels, *data, chunk=chunk, label=text, **how)

    levels = [(model.params, e) for e in radii]
    correct = jax.jit(partial(is_right, model.apply))
    (right,) = shares("clean accuracy", correct, levels[:1])
    # In as many pieces of even size: the rest of the last one is computed for nothing.
    kept = max(1, int(right.sum()))
    chunk = -(-kept // -(-kept // chunk))
    by_pgd = shares("PGD attack", follows, levels, start=right)
    # The second objective sees what the first has not turned.
    by_apgd = shares(
        "APGD attack",
        climbs,
        [(*level, goal) for level in levels for goal in goals],
        start=right,
        # They are turned soon, and a batch of them ends.
        first=np.repeat(~by_pgd, len(goals), 0),
    )[len(goals) - 1 :: len(goals)]
    left = by_pgd[-1] & by_apgd[-1]
    blind = left
    if left.any():
        blind = left & ~shares("gradients", sees, levels[:1], start=left)[0]
    _check_gradients(right, blind)
    return Accuracy(
        radii,
        float(right.mean()),
        by_pgd.mean(1).tolist(),
        by_apgd.mean(1).tolist(),
        norm,
        float(blind.mean()),
    )


def _programs(
    model: Model, plain: Cost, norm: str, bounds: tuple[float, float]
) -> tuple[Any, Any, Any]:
    """PGD, APGD, and whether there is a gradient."""
    large = plain.entries * len(model.inputs) > _SMALL
    fast = faster(model.apply) if large else model.apply
    how = {"norm": norm, "bounds": bounds}
    climbs = quick(partial(survives_apgd, fast, **how))
    # It runs once an input: optimising it would cost more.
    plainly = {"xla_backend_optimization_level": 0}
    sees = jax.jit(partial(has_gradient, fast), compiler_options=plainly)
    return quick(partial(survives_pgd, fast, **how)), climbs, sees


def _check_gradients(right: Any, blind: Any) -> None:
    # Where something was turned, gradients showed the way.
    if right.any() and (blind == right).all():
        raise ValueError(
            "the gradients of the loss over the input are 0 or NaN at each of the "
            f"{right.sum()} inputs that are right, so that attacks see nothing "
            "there; wanted a model with gradients: is there rounding, an argmax, a "
            "cast to integers or a saturated softmax in it? Certificates need none "
            "(--skip accuracy)."
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

    logits = tempered(apply, params, inputs, labels)
    attack = pgd(
        lambda x: jax.vmap(cross_entropy)(logits(x), labels),
        inputs,
        eps=eps,
        step_size=eps / 8,
        num_steps=PGD_STEPS,
        norm=norm,
        bounds=bounds,
        keep_best=True,
    )
    return _reads(logits_of(apply, params, attack.x), labels)


def tempered(
    apply: Apply, params: Any, inputs: jax.Array, labels: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """The logits of a batch, divided where a label leads by more than 8 at the inputs.

    The cross entropy of a label that leads by 17 is 0 in float32, and an attack that
    climbs it stays where it is. Attacks of two classes do not depend on the divisor.

    Args:
        apply: Of one input.
        params: A pytree of arrays.
        inputs: (n, ...).
        labels: (n,).

    Returns:
        A function of (n, ...) whose row of an input is always divided by one number.
    """

    def logits(x: jax.Array) -> jax.Array:
        z = logits_of(apply, params, x)
        # Half precision loses the cross entropy much sooner.
        return z.astype(jnp.promote_types(z.dtype, jnp.float32))

    start = logits(inputs)
    own = labels[:, None] == jnp.arange(start.shape[1])[None]
    others = jnp.where(own, -jnp.inf, start).max(1)
    lead = jnp.where(own, start, -jnp.inf).max(1) - others
    scale = jnp.where(jnp.isfinite(lead), jnp.maximum(lead / _LEAD, 1), 1)[:, None]
    return lambda x: logits(x) / scale


def has_gradient(
    apply: Apply, level: tuple[Any, Any], inputs: jax.Array, labels: jax.Array
) -> jax.Array:
    """Whether the loss that PGD climbs has a gradient at each input: not 0, no NaN.

    Args:
        apply: Of one input.
        level: (params, radius); the radius does not matter.
        inputs: (n, ...).
        labels: (n,).
    """
    logits = tempered(apply, level[0], inputs, labels)

    def loss(x: jax.Array) -> jax.Array:
        return jax.vmap(cross_entropy)(logits(x), labels).sum()

    slope = jax.grad(loss)(inputs)
    return jnp.any((slope != 0) & ~jnp.isnan(slope), tuple(range(1, inputs.ndim)))


def survives_apgd(
    apply: Apply,
    level: tuple[Any, Any, Any],
    inputs: jax.Array,
    labels: jax.Array,
    *,
    norm: str,
    bounds: tuple[float, float],
) -> jax.Array:
    """Whether each input gets its label wherever APGD goes.

    Args:
        apply: Of one input.
        level: (params, radius, objective), 0 for "ce" and 1 for "dlr".
        inputs: (n, ...).
        labels: (n,).
        norm: "linf" or "l2".
        bounds: Of an entry.
    """
    params, eps, objective = level
    return is_robust(
        tempered(apply, params, inputs, labels),
        inputs,
        labels,
        eps=eps,
        num_steps=APGD_STEPS,
        norm=norm,
        objective=objective,
        bounds=bounds,
    )
