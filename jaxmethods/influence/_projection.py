"""Random sketches of gradients: few numbers an example, unbiased inner products.

A gradient that is a product of two factors is sketched on both sides, `(A R)^T (B Q)`
in place of `A^T B`, and never formed; any other as a vector. All parts of a gradient
together keep a given count of numbers.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..sketch import countsketch
from ._chunks import length_of
from ._contract import Factors, Gradients, Lookups
from ._gradients import Recipe, alike, per_example
from ._task import Point, Reading

# The part of a gradient that all parameters without factors make up.
REST = -1


class Slot(NamedTuple):
    """How many numbers of an embedding a part of the gradient has, and which.

    Attributes:
        part: Which part, as `per_example` counts; REST for all without factors.
        shape: Of the gradient, without examples: (size,) for a vector, (p, q) for one
            in factors, (groups, p, q) for many.
        sides: The numbers kept of the axes p and q, or of the vector.
        size: The numbers in all.
    """

    part: int
    shape: tuple[int, ...]
    sides: tuple[int, ...]
    size: int


class Layout(NamedTuple):
    """How an embedding is laid out.

    Attributes:
        slots: Those of the parts of the gradient, one after the other.
        width: The count of numbers, after which it starts again at the first.
    """

    slots: list[Slot]
    width: int


def lay_out(shapes: dict[int, tuple[int, ...]], most: int | None) -> Layout:
    """Shares numbers out among the parts of a gradient.

    All get the same share, but none more numbers than it has; what small parts and
    whole sides leave is shared by the larger ones. Where there are more parts than
    numbers, several parts add up in one.

    Args:
        shapes: The shape of each part, as in `Slot`.
        most: The count of numbers, at least 1; None: as many as there are.
    """
    by_size = sorted(shapes, key=lambda part: math.prod(shapes[part]))
    left, sizes = most, {}
    for rest, part in zip(range(len(by_size), 0, -1), by_size, strict=True):
        whole = math.prod(shapes[part])
        share = whole if left is None else min(whole, max(1, left // rest))
        sides = _sides(shapes[part], share)
        groups = math.prod(shapes[part][:-2])
        sizes[part] = sides, min(share, groups * math.prod(sides))
        left = None if left is None else left - sizes[part][1]
    slots = [Slot(part, shape, *sizes[part]) for part, shape in shapes.items()]
    width = sum(slot.size for slot in slots)
    return Layout(slots, width if most is None else min(width, most))


class Embedder(NamedTuple):
    """Maps examples to embeddings whose inner products are those of the gradients.

    Attributes:
        recipe: How to take the gradients.
        parts: The parts of the gradient that count.
        project: The count of numbers kept at most; None: all, exactly.
        dtype: Of the embeddings.
    """

    recipe: Recipe
    parts: Collection[int]
    project: int | None
    dtype: jnp.dtype

    def __call__(self, point: Point, examples: Any) -> jax.Array:
        """The embeddings, (n, width)."""
        found = self._gradients(point.params, examples)
        layout = self._lay_out(found)
        matrices = _draw_sides(point.key, layout.slots, self.dtype)
        columns = [jnp.zeros((length_of(examples), 0), self.dtype)]
        for i, slot in enumerate(layout.slots):
            gradient = found[slot.part]
            if isinstance(gradient, Factors):
                sides = [matrices.get((i, side)) for side in range(2)]
                gradient = Factors(*map(_shorten, gradient, sides)).whole()
            numbers = _sketch(point.key, i, slot, _flat(gradient))
            columns.append(numbers.astype(self.dtype))
        return _wrap(jnp.concatenate(columns, axis=1), layout.width)

    def layout(self, params: Any, examples: Any) -> Layout:
        """How the embeddings of such examples are laid out."""
        return self._lay_out(jax.eval_shape(self._gradients, params, examples))

    def _lay_out(self, found: dict[int, Gradients]) -> Layout:
        return lay_out({part: _shape(g) for part, g in found.items()}, self.project)

    def _gradients(self, params: Any, examples: Any) -> dict[int, Gradients]:
        """The gradients in factors, and all others joined to one vector."""
        found = per_example(self.recipe, params, examples, self.recipe.factored)
        parts: dict[int, Gradients] = {}
        rest = []
        for part in self.parts:
            gradient = found[part]
            if isinstance(gradient, Factors):
                parts[part] = gradient
            else:
                rest.append(_flat(gradient).astype(self.dtype))
        return parts | ({REST: jnp.concatenate(rest, axis=1)} if rest else {})


def embedders(project: int | None, reading: Reading) -> list[Embedder]:
    """For each set of examples its embedder, all of one layout.

    Args:
        project: The count of numbers, at least 1; None: all, exactly.
        reading: Of the loss on one or two sets.
    """
    recipes = reading.recipes
    recipes = list(alike(*recipes)) if len(recipes) > 1 else recipes
    used = [{*recipe.factored, *recipe.whole} for recipe in recipes]
    parts = sorted(set.intersection(*used))
    return [Embedder(recipe, parts, project, reading.dtype) for recipe in recipes]


def _shape(gradient: Gradients) -> tuple[int, ...]:
    """The shape of a part of a gradient, as in `Slot`."""
    if not isinstance(gradient, Factors):
        return gradient.shape[1:]
    (*groups, _, q), left = gradient.right.shape[1:], gradient.left
    p = left.width if isinstance(left, Lookups) else left.shape[-1]
    return (*groups, p, q)


def _draw_sides(
    key: jax.Array | None, slots: Sequence[Slot], dtype: jnp.dtype
) -> dict[tuple[int, int], jax.Array]:
    """What shortens the sides of factors: (slot, side) -> (width, k), unless kept.

    They are columns of one sketch for each k: many take as long to compile as one.
    """
    wanted = [
        (k, width, (i, side))
        for i, slot in enumerate(slots)
        if len(slot.shape) > 1
        for side, (width, k) in enumerate(zip(slot.shape[-2:], slot.sides, strict=True))
        if not _kept(key, width, k)
    ]
    drawn = {}
    for k in sorted({k for k, *_ in wanted}):
        some = [(width, place) for number, width, place in wanted if number == k]
        total = sum(width for width, _ in some)
        columns = countsketch(_fold(key, 2 * k), k, total).explicit()
        start = 0
        for width, place in some:
            bucket, sign = (
                x[0, start : start + width, None]
                for x in (columns.bucket, columns.sign)
            )
            here = bucket == jnp.arange(k).reshape(1, k)
            drawn[place] = jnp.where(here, sign, 0).astype(dtype)
            start += width
    return drawn


def _shorten(factor: Any, matrix: jax.Array | None) -> Any:
    """A factor with fewer columns; a product with a small matrix is fast anywhere."""
    if matrix is None:
        return factor
    if isinstance(factor, Lookups):
        return factor @ matrix
    precision = lax.Precision.HIGHEST
    return jnp.matmul(factor.astype(matrix.dtype), matrix, precision=precision)


def _sketch(
    key: jax.Array | None, number: int, slot: Slot, flat: jax.Array
) -> jax.Array:
    """The numbers of a slot from those that the sides left, (n, size)."""
    signed = len(slot.shape) > 1  # By its sides, where a single number is left.
    if flat.shape[1] == slot.size and (signed or _kept(key, slot.size, slot.size)):
        return flat
    key = _fold(key, 2 * number + 1)
    return (countsketch(key, slot.size, flat.shape[1]) @ flat.T).T


def _wrap(numbers: jax.Array, width: int) -> jax.Array:
    """Adds up what lies a multiple of `width` columns apart."""
    n, total = numbers.shape
    if total == width:
        return numbers
    rounds = -(-total // width)
    numbers = jnp.pad(numbers, ((0, 0), (0, rounds * width - total)))
    return numbers.reshape(n, rounds, width).sum(1)


def _flat(gradient: jax.Array) -> jax.Array:
    return gradient.reshape(gradient.shape[0], math.prod(gradient.shape[1:]))


def _fold(key: jax.Array | None, number: int) -> jax.Array:
    """A key for each use: even numbers for sides, odd ones for vectors."""
    assert key is not None  # Without a key all numbers are kept.
    return jax.random.fold_in(key, number)


def _kept(key: jax.Array | None, width: int, k: int) -> bool:
    """Whether numbers stay as they are.

    A single number gets a random sign, as parts that add up in one must: with it their
    products with each other are zero on average.
    """
    return k == width and (key is None or width > 1)


def _sides(shape: tuple[int, ...], share: int) -> tuple[int, ...]:
    """How many numbers to keep of each side of a matrix, or of a vector.

    The error of a sketch with k and l numbers a side is about 1 / k + 1 / l of the
    squared norms, without the term of a side that is kept whole.
    """
    if len(shape) == 1:
        return (share,)
    *groups, p, q = shape
    share = max(1, share // math.prod(groups))
    small, large = sorted((p, q))
    root = math.isqrt(share)
    if small * small <= 4 * share and small <= share:
        pair = small, min(large, share // small)
    else:
        pair = root, share // root
    return pair if p <= q else pair[::-1]
