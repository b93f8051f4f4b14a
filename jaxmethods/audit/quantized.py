"""How often a model is proven to be right with weights of few bits."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import bound
from ..core import check_choice, check_integer
from .accuracy import is_right
from .certificates import METHODS, inputs_at_once
from .compiling import quick
from .cost import cost
from .levels import held
from .model import Apply, check_labels, read_model

BITS = (8, 7, 6, 5, 4, 3, 2)
# Bounds over weights carry a number a weight, class and input.
_ENTRIES = 2**25


class Quantized(NamedTuple):
    """Shares of the inputs that are right with weights of few bits.

    Attributes:
        bits: Descending.
        rounded: Right with the weights rounded to nearest.
        certified: Proven to be right with each weight moved by up to half a step of its
            grid, at this number of bits and at all larger ones.
        per: What has a grid of its own: "tensor" or "channel".
        method: What proved it: "ibp", "crown_ibp", "crown" or "alpha_crown".
    """

    bits: list[int]
    rounded: list[float]
    certified: list[float]
    per: str
    method: str


def quantized(
    apply: Apply,
    params: Any,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    bits: Sequence[int] = BITS,
    per: str = "tensor",
    method: str = "crown_ibp",
    batched: bool | None = None,
    chunk: int = 64,
    progress: bool = False,
) -> Quantized:
    """Counts the inputs that provably get their label from rounded weights.

    Proven: over `bound.quantization_box`, half a step of the grid round each weight,
    every lower bound of `bound.margins` is positive. That covers rounding to nearest on
    any grid as fine, and rounding by chance on one that is twice as fine. Of an input
    that is not proven at one number of bits fewer are not tried.

    Args:
        apply: `apply(params, x) -> logits`, of one input or of a batch.
        params: A pytree of arrays; floating ones with two axes or more are weights.
        inputs: (n, ...) floating.
        labels: (n,) integers.
        bits: 2..64 each.
        per: "tensor" for one grid a weight, "channel" for one an index of its last
            axis.
        method: As for `certificates`. "crown" is tighter and, over weights, costs
            hundreds of times more.
        batched: Whether `apply` takes a batch; None: found out.
        chunk: How many inputs are bounded at once, at most.
        progress: Whether to show on standard error how far it is.

    Returns:
        `Quantized`.

    Raises:
        NotImplementedError: A primitive without a rule, as `certificates`.
        TypeError, ValueError: As `accuracy`; bits out of their range; no weights.

    Example:
        >>> w = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        >>> x = jnp.array([[0.9, 0.1], [0.45, 0.5]])
        >>> apply = lambda params, x: x @ params
        >>> quantized(apply, w, x, jnp.array([0, 1]), bits=[8, 2]).certified
        [1.0, 0.5]

    References:
        Xu et al. 2020, arXiv:2002.12920 (weights as sets).
    """
    model = read_model(apply, params, inputs, batched=batched)
    labels = check_labels(labels, len(model.inputs), model.num_classes)
    check_choice(method, tuple(METHODS), "method")
    if np.ndim(bits) != 1:
        raise ValueError(f"bits is {bits!r}; wanted a sequence, such as [8, 4].")
    if not len(bits):
        raise ValueError("bits has no numbers; wanted at least one.")
    bits = sorted({check_integer(b, "bits", 2, 64) for b in bits}, reverse=True)
    boxes = [bound.quantization_box(model.params, b, per=per) for b in bits]
    sizes = [leaf.lower.size for leaf in _leaves(boxes[0]) if _is_box(leaf)]
    if not sizes:
        raise ValueError(
            "params have no weights to quantize; wanted a floating array with two axes "
            "or more."
        )
    chunk = min(check_integer(chunk, "chunk", 1), len(labels))
    needs = partial(is_certified_for_weights, model.apply, method=method)
    work = cost(needs, boxes[0], model.inputs[:1], labels[:1])
    few = _ENTRIES // (sum(sizes) * (model.num_classes - 1))
    few = max(1, min(few, inputs_at_once(work), chunk))
    right = jax.jit(partial(is_right, model.apply))
    proves = quick(needs)
    name = "quantized weights" if progress else None
    data = model.inputs, labels
    levels = [(rounded(model.params, b, per=per), 0.0) for b in bits]
    # The accuracy of rounded weights may rise again with fewer bits.
    ones = [held(right, [level], *data, chunk=chunk) for level in levels]
    # Those that the weights of the first grid get wrong have no proof there.
    (start,) = ones[0]
    proven = held(proves, boxes, *data, chunk=few, start=start, label=name)
    return Quantized(
        bits,
        [float(one.mean()) for one in ones],
        proven.mean(1).tolist(),
        per,
        method,
    )


def rounded(params: Any, bits: int, *, per: str = "tensor") -> Any:
    """Weights rounded to nearest on the grid of `bound.quantization_box`.

    Args:
        params: A pytree of arrays.
        bits: 2..64.
        per: "tensor" or "channel".

    Returns:
        A pytree like `params`; what the box leaves alone stays as it is.

    Example:
        >>> rounded(jnp.array([[1.0, 0.4]]), 2)
        Array([[1., 0.]], dtype=float32)
    """

    def nearest(box: Any, leaf: jax.Array) -> jax.Array:
        if not _is_box(box):
            return leaf
        axes = tuple(range(leaf.ndim - (per == "channel")))
        # In half precision the number of a step may be out of range.
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        top = jnp.max(jnp.abs(wide), axes, keepdims=True)
        step = top / float(2 ** (bits - 1) - 1)
        steps = jnp.round(wide / jnp.where(step > 0, step, 1))
        return (steps * step).astype(leaf.dtype)

    boxes = bound.quantization_box(params, bits, per=per)
    return jax.tree.map(nearest, boxes, params, is_leaf=_is_box)


def is_certified_for_weights(
    apply: Apply, params: Any, inputs: jax.Array, labels: jax.Array, *, method: str
) -> jax.Array:
    """Whether each input provably gets its label from all weights of a set.

    Args:
        apply: Of one input.
        params: With sets in the place of weights.
        inputs: (n, ...).
        labels: (n,).
        method: Of `METHODS`.
    """

    def one(x: jax.Array, label: jax.Array) -> jax.Array:
        margins = bound.margins(apply, label)
        return jnp.all(METHODS[method](margins)(params, x).lower > 0)

    return jax.vmap(one)(inputs, labels)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, bound.Box)


def _leaves(boxes: Any) -> list[Any]:
    return jax.tree.leaves(boxes, is_leaf=_is_box)
