"""How often a model is proven to be right, for every input within a radius."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import bound
from ..core import check_choice, check_integer
from .compiling import on_cpu, quick
from .cost import Cost, cost
from .levels import reached
from .model import Apply, check_labels, check_range, read_model
from .radii import NORMS, check_radii

METHODS: dict[str, Callable[..., Callable[..., Any]]] = {
    "ibp": bound.ibp,
    "crown_ibp": partial(bound.crown_ibp, side="lower"),
    "crown": partial(bound.crown, side="lower"),
    "alpha_crown": partial(bound.alpha_crown, side="lower"),
}
# "auto" takes crown up to so many entries of all operations: half a minute of a core.
_FEW = 2**35
# Entries of the largest array: programs need up to eight times as many, 1 GB.
AT_ONCE = 2**25
# The same on CPUs, where a larger batch is no faster: up to 32 MB, which malloc keeps.
# What is larger it gives back after each call, and clearing pages takes half the time.
_ON_CPU = 2**20


class Certificates(NamedTuple):
    """Shares of the inputs whose label is proven within each radius.

    Attributes:
        eps: The radii, ascending.
        certified: Proven at this radius, or at a larger one.
        method: What proved it: "ibp", "crown_ibp", "crown" or "alpha_crown".
        norm: "linf" or "l2".
    """

    eps: list[float]
    certified: list[float]
    method: str
    norm: str


def certificates(
    apply: Apply,
    params: Any,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    eps: Sequence[float] | None = None,
    norm: str = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    method: str = "auto",
    batched: bool | None = None,
    chunk: int = 64,
    progress: bool = False,
) -> Certificates:
    """Counts the inputs that provably keep their label within a radius.

    Proven: over the ball of the radius, cut off at `bounds`, every lower bound of
    `bound.margins` is positive. What is proven at one radius holds at smaller ones, so
    of each input the largest radius is sought by halving.

    Args:
        apply: `apply(params, x) -> logits`, of one input or of a batch.
        params: A pytree of arrays.
        inputs: (n, ...) floating.
        labels: (n,) integers.
        eps: Radii, in units of the inputs; None: those of `AuditConfig`.
        norm: "linf" or "l2".
        bounds: The least and the greatest value of an entry; None for no limits.
        method: "ibp" (cheapest), "crown_ibp", "crown", "alpha_crown" (tightest); "auto"
            takes "crown" where a count of its operations says that half a minute of a
            core will do for all inputs, or that it costs at most twice "crown_ibp",
            else that.
        batched: Whether `apply` takes a batch; None: found out.
        chunk: How many inputs are bounded at once, at most: fewer where their arrays
            would be large.
        progress: Whether to show on standard error how far it is.

    Returns:
        `Certificates`: lower bounds of what holds; `accuracy` gives upper ones. What
        rounding may change is taken off: a model that computes in bfloat16 loses all of
        them to it, and is better certified with its parameters cast to float32.

    Raises:
        NotImplementedError: A primitive without a rule; the message names it, its line,
            and `bound.register_rule`.
        TypeError, ValueError: As `accuracy`; an unknown method.

    Example:
        >>> w = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        >>> x = jnp.array([[0.9, 0.1], [0.4, 0.6]])
        >>> apply = lambda params, x: x @ params
        >>> certificates(apply, w, x, jnp.array([0, 1]), eps=[0.05, 0.2]).certified
        [1.0, 0.5]

    References:
        Zhang et al. 2018, arXiv:1811.00866; Xu et al. 2020, arXiv:2002.12920.
    """
    model = read_model(apply, params, inputs, batched=batched)
    count = len(model.inputs)
    labels = check_labels(labels, count, model.num_classes)
    radii = check_radii(eps, norm)
    check_range(model.inputs, bounds)
    check_choice(method, ("auto", *METHODS), "method")
    how = {"norm": norm, "bounds": bounds}
    one = (model.params, np.asarray(radii[:1])), model.inputs[:1], labels[:1]

    def needs(method: str) -> Cost:
        return cost(partial(is_certified, model.apply, method=method, **how), *one)

    method, work = chosen(method, needs, count)
    rows = rows_at_once(method, work, cost(model.apply, model.params, model.inputs[0]))
    proves = quick(
        partial(is_certified, model.apply, method=method, num_rows=rows, **how)
    )
    number = reached(
        lambda eps, *data: proves((model.params, eps), *data),
        np.asarray(radii),
        model.inputs,
        labels,
        chunk=min(check_integer(chunk, "chunk", 1), count, inputs_at_once(work)),
        label="certificates" if progress else None,
    )
    shares = [float((number > k).mean()) for k in range(len(radii))]
    return Certificates(radii, shares, method, norm)


def chosen(method: str, needs: Callable[[str], Cost], count: int) -> tuple[str, Cost]:
    """What "auto" stands for, and what the method needs.

    Args:
        method: Of `METHODS`, or "auto".
        needs: From a method to what it needs for one input.
        count: How many inputs there are.

    Returns:
        One of `METHODS`, and its cost.
    """
    if method != "auto":
        return method, needs(method)
    least, work = needs("crown_ibp"), needs("crown")
    few = max(_FEW, 2 * least.entries * count)
    return ("crown", work) if work.entries * count <= few else ("crown_ibp", least)


def inputs_at_once(work: Cost) -> int:
    """How many inputs are bounded at once, at most.

    Args:
        work: What bounds of one input need.
    """
    most = min(AT_ONCE, _ON_CPU) if on_cpu() else AT_ONCE
    return max(1, most // work.largest)


def rows_at_once(method: str, work: Cost, plain: Cost) -> int | None:
    """How many rows a backward pass carries where those of all entries are too many.

    Args:
        method: Of `METHODS`.
        work: What bounds of one input need.
        plain: What the model needs, of which the largest array has the most rows.

    Returns:
        `chunk` of the method; None for no limit.
    """
    if method == "ibp" or work.largest <= AT_ONCE:
        return None
    # Passes in steps keep no patches, and their programs several such arrays.
    return max(1, plain.largest * AT_ONCE // (4 * work.largest))


def is_certified(
    apply: Apply,
    level: tuple[Any, Any],
    inputs: jax.Array,
    labels: jax.Array,
    *,
    method: str,
    norm: str = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    num_rows: int | None = None,
) -> jax.Array:
    """Whether each input provably keeps its label within a radius.

    Args:
        apply: Of one input.
        level: (params, radius), one radius or (n,).
        inputs: (n, ...).
        labels: (n,).
        method: Of `METHODS`.
        norm: "linf" or "l2".
        bounds: Of an entry; None for no limits.
        num_rows: How many rows a backward pass carries at most; None for no limit.
    """
    params, eps = level
    options = {} if num_rows is None else {"chunk": num_rows}

    def one(x: jax.Array, label: jax.Array, eps: jax.Array) -> jax.Array:
        region = bound.Ball(x, eps, NORMS[norm])
        if bounds is not None:
            region = bound.Intersection(region, bound.Box(*map(float, bounds)))
        margins = bound.margins(lambda x: apply(params, x), label)
        return jnp.all(METHODS[method](margins, **options)(region).lower > 0)

    radii = jnp.broadcast_to(eps, labels.shape)
    if len(labels) == 1:  # XLA takes up to ten times longer for sums of batches of one
        return one(inputs[0], labels[0], radii[0])[None]
    return jax.vmap(one)(inputs, labels, radii)
