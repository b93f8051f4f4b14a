"""What single words become: values each of whose rows depends on one word.

As long as words are kept apart, what a row may be is listed, candidate by candidate,
whatever functions are applied to it. Where rows are added up the words within the
budget that change a sum most are replaced, which is exact as well. From there on there
are intervals.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import Node, Variable
from ._bounds import Bounds
from ._interval import interval
from ._products import center_radius
from ._rounding import num_terms, unit
from ._substitutions import Substitutions
from ._through import ELEMENTWISE

UNIVARIATE = frozenset(
    {
        *("abs", "asinh", "atan", "celu", "elu", "erf", "erfc", "exp", "exp2", "expm1"),
        *("integer_pow", "leaky_relu", "log", "log1p", "logistic", "max", "min"),
        *("reciprocal", "rsqrt", "selu", "sinh", "softplus", "sqrt", "square", "tanh"),
        "univariate",
    }
)
_ENTRY_BY_ENTRY = ELEMENTWISE | UNIVARIATE | {"pow", "sign", "sin", "cos"}
_REDUCED = frozenset({"reduce_sum", "reduce_max", "reduce_min"})
_RESHAPED = frozenset({"reshape", "squeeze", "expand_dims"})


class Alternatives(NamedTuple):
    """What each row of a value is for each choice of its word.

    Attributes:
        words: The sentences.
        ends: Intervals (1 + K, *shape): the value with each word at its k-th choice.
        axis: The axis whose entries belong to one word each, in the words' order.
        block: How many neighbours on that axis belong to the same word.
    """

    words: Substitutions
    ends: Bounds
    axis: int
    block: int

    def range(self) -> Bounds:
        """The interval of each entry, which depends on one word."""
        lower, upper = self.ends if self.words.budget else (e[:1] for e in self.ends)
        return Bounds(jnp.min(lower, axis=0), jnp.max(upper, axis=0))


def alternatives(words: Substitutions) -> Alternatives:
    """What the embeddings themselves may be."""
    values = jnp.moveaxis(words.choices(), 1, 0)
    return Alternatives(words, Bounds(values, values), 0, 1)


def followed(node: Node, held: Sequence[Alternatives | None]) -> Alternatives | None:
    """What a node's output may be, or None where it mixes words.

    Args:
        node: Any node with one output.
        held: What is known of its variables.
    """
    first = held[0]
    if first is None or any(not _alike(first, h) for h in held):
        return None
    place = _place_after(node, first)
    if place is None:
        return None

    def step(*values: Bounds) -> Bounds:
        places = iter(values)
        atoms = [next(places) if isinstance(a, Variable) else a for a in node.inputs]
        return interval(node, atoms, "bound")[0]

    ends = jax.vmap(step)(*(h.ends for h in held if h is not None))
    return Alternatives(first.words, ends, *place)


def _alike(first: Alternatives, other: Alternatives | None) -> bool:
    if other is None or other.words is not first.words:
        return False
    return (other.axis, other.block) == (first.axis, first.block)


def _place_after(node: Node, held: Alternatives) -> tuple[int, int] | None:
    """The axis of the words in a node's output, and how many entries each has there."""
    axis, block = held.axis, held.block
    variable, out = node.variables[0], node.outputs[0]
    if len(node.outputs) != 1 or not jnp.issubdtype(out.dtype, jnp.floating):
        return None
    if node.name in _ENTRY_BY_ENTRY:
        shapes = [v.shape for v in node.variables]
        kept = all(
            len(shape) == len(out.shape) and shape[axis] == out.shape[axis]
            for shape in shapes
        )
        return (axis, block) if kept else None
    if node.name in ("norm", "normalize"):
        return None if axis in node.params["axes"] else (axis, block)
    if len(node.variables) != 1:
        return None
    if node.name == "transpose":
        return node.params["permutation"].index(axis), block
    if node.name in _REDUCED:
        axes = node.params["axes"]
        return None if axis in axes else (axis - sum(i < axis for i in axes), block)
    if node.name == "broadcast_in_dim":
        place = node.params["broadcast_dimensions"][axis]
        return (place, block) if out.shape[place] == variable.shape[axis] else None
    if node.name in _RESHAPED:
        return _after_reshape(variable.shape, out.shape, held)
    if node.name == "dot_general":
        place = _after_product(node, axis)
        return None if place is None else (place, block)
    return None


def _after_reshape(
    old: tuple[int, ...], new: tuple[int, ...], held: Alternatives
) -> tuple[int, int] | None:
    before, num_words = math.prod(old[: held.axis]), old[held.axis] // held.block
    for place, size in enumerate(new):
        starts_there = math.prod(new[:place]) == before
        if starts_there and size % num_words == 0 and size >= num_words > 1:
            return place, size // num_words
    return None


def _after_product(node: Node, axis: int) -> int | None:
    """The axis of a matrix product that was `axis` of its variable operand."""
    contracted, batch = node.params["dimension_numbers"]
    side = 0 if isinstance(node.inputs[0], Variable) else 1
    if axis in contracted[side]:
        return None
    if axis in batch[side]:
        return batch[side].index(axis)
    gone = (*contracted[side], *batch[side])
    place = len(batch[0]) + sum(i not in gone for i in range(axis))
    if side == 1:
        taken = len(contracted[0]) + len(batch[0])
        place += len(node.inputs[0].shape) - taken
    return place


def summed(node: Node, held: Sequence[Alternatives | None]) -> Bounds | None:
    """The interval of a sum over words, or None where a node is no such sum."""
    first = held[0]
    if len(held) != 1 or first is None:
        return None
    if not jnp.issubdtype(node.outputs[0].dtype, jnp.floating):
        return None
    if node.name == "reduce_sum" and first.axis in node.params["axes"]:
        terms = _terms_of_sum(node, first)
    elif node.name == "dot_general" and _after_product(node, first.axis) is None:
        terms = _terms_of_product(node, first)
    else:
        return None
    least = _least_sum(terms.lower, first.words.budget)
    return Bounds(least, -_least_sum(-terms.upper, first.words.budget))


def _by_words(held: Alternatives, x: Any) -> Any:
    """An array (1 + K, *shape), or the like, with an axis for the words alone."""
    axis, shape = held.axis + 1, x.shape
    return x.reshape(*shape[:axis], -1, held.block, *shape[axis + 1 :])


def _terms_of_sum(node: Node, held: Alternatives) -> Bounds:
    """What each word adds to the sum: (1 + K, T, *shape)."""
    word, axes = held.axis + 1, node.params["axes"]
    others = [i + 1 + (i > held.axis) for i in axes if i != held.axis]
    others.append(word + 1)

    def add(x: Any) -> Any:
        left = word - sum(i < word for i in others)
        return jnp.moveaxis(jnp.sum(x, axis=tuple(others)), left, 1)

    return _centered(node, held, add, add)


def _terms_of_product(node: Node, held: Alternatives) -> Bounds:
    """What each word adds to the product: (1 + K, T, *shape)."""
    contracted, batch = node.params["dimension_numbers"]
    side = 0 if isinstance(node.inputs[0], Variable) else 1
    place = contracted[side].index(held.axis)
    axes = [contracted[s][place] for s in (0, 1)]  # of the words, in both operands
    weights = node.inputs[1 - side]
    at = axes[1 - side]
    shape = weights.shape
    weights = weights.reshape(*shape[:at], -1, held.block, *shape[at + 1 :])

    def shifted(numbers: Sequence[int], side: int, with_block: bool) -> tuple[int, ...]:
        kept = [i + (i > axes[side]) for i in numbers if i != axes[side]]
        return (*kept, axes[side] + 1) if with_block else tuple(kept)

    numbers: Any = (
        tuple(shifted(contracted[s], s, True) for s in (0, 1)),
        tuple((axes[s], *shifted(batch[s], s, False)) for s in (0, 1)),
    )

    def product(x: Any, w: Any) -> Any:
        pair = (x, w) if side == 0 else (w, x)
        return jax.lax.dot_general(*pair, numbers, precision=jax.lax.Precision.HIGHEST)

    return _centered(
        node,
        held,
        jax.vmap(lambda x: product(x, weights)),
        jax.vmap(lambda x: product(x, jnp.abs(weights))),
    )


def _centered(node: Node, held: Alternatives, linear: Any, absolute: Any) -> Bounds:
    """A linear function of the ends, with what it loses to rounding."""
    center, radius = center_radius(Bounds(*(_by_words(held, e) for e in held.ends)))
    error = unit(num_terms(node), center.dtype)
    middle = linear(center)
    spread = absolute(radius + error * (jnp.abs(center) + radius))
    return Bounds(middle - spread, middle + spread)


def _least_sum(terms: Any, budget: int) -> Any:
    """The least sum over axis 1, of choices from axis 0 that change few from 0."""
    gains = jnp.moveaxis(terms[0] - jnp.min(terms, axis=0), 0, -1)
    if budget < gains.shape[-1]:
        gains, _ = jax.lax.top_k(gains, budget)
    return jnp.sum(terms[0], axis=0) - jnp.sum(gains, axis=-1)
