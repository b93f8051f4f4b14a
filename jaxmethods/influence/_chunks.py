"""Maps over examples a bounded number at a time, never dropping a remainder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import jaxprs_in_params

from ..core import leaf_paths, vary_together

# Numbers (not bytes) that the intermediate values of one chunk may fill on a CPU, and
# how many times as many on an accelerator, which small chunks leave idle; how many are
# best there is not measured.
BUDGET, ON_ACCELERATORS = 2**24, 8
# What is kept of examples to be multiplied with others all at once may fill one part in
# so many of that: products of few rows first lay out the other side each time, while
# those of many miss the cache.
PARTS = 8
# A count of examples that no other axis is likely to have or to be a multiple of.
PRIME = 10007
# What to do with a list of batches, which is a tree of arrays as any other.
ITERATE = "batches go in as an iterator: iter(batches)"


def count_examples(examples: Any, name: str, *, empty: bool = False) -> int:
    """The length of the leading axis that all leaves share.

    Raises:
        ValueError: A leaf without that axis, or none, or (unless `empty`) length 0.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(examples)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths:
        found = dict(list(zip(leaf_paths(examples), shapes, strict=True))[:6])
        hint = f" ({ITERATE})" if name in ("train", "examples") else ""
        raise ValueError(
            f"{name} has leaves of shapes {found}; wanted one leading axis of "
            f"examples, equally long in each leaf{hint}."
        )
    length = lengths.pop()[0]
    if length == 0 and not empty:
        raise ValueError(
            f"{name} has no examples: shapes {shapes}; wanted one or more."
        )
    return length


def map_chunks(
    fn: Callable[[Any], Any],
    examples: Any,
    numbers: int | None = None,
    *,
    then: Callable[[Any], Any] = lambda rows: rows,
) -> Any:
    """Applies `fn` to a bounded number of examples at a time and joins the results.

    Args:
        fn: Maps examples with a leading axis to a pytree with the same leading axis;
            each of its rows depends on one example.
        examples: A pytree with a leading axis of examples.
        numbers: How many numbers an example takes; None: all that `fn` computes.
        then: Applied to the results of all examples at once, in any order of the rows;
            it maps rows as `fn` does.

    Returns:
        What `then(fn(examples))` would return.
    """
    n = length_of(examples)
    count = _count(n, numbers or numbers_per_example(fn, examples))
    if count == 1:
        return then(fn(examples))

    def in_a_row(x: jax.Array) -> jax.Array:
        return x.reshape(count * x.shape[1], *x.shape[2:])

    def join(x: jax.Array) -> jax.Array:
        x = x.reshape(count, -1, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(-1, *x.shape[2:])[:n]

    chunks = lax.map(lambda i: fn(_chunk(examples, i, count)), jnp.arange(count))
    return jax.tree.map(join, then(jax.tree.map(in_a_row, chunks)))


def map_stages(
    first: Callable[[Any], Any], second: Callable[[Any], Any], examples: Any
) -> Any:
    """Applies `second` to what `first` makes, of more examples at a time.

    Args:
        first: Maps examples to a pytree, both with a leading axis of examples; it
            computes much more than it returns.
        second: Maps what `first` returns likewise.
        examples: A pytree with a leading axis of examples.

    Returns:
        What `second(first(examples))` would return.
    """
    kept = PARTS * numbers_held(first, examples)
    return map_chunks(lambda some: map_chunks(first, some, then=second), examples, kept)


def fold_chunks(
    fn: Callable[[Any, Any, jax.Array], Any], carry: Any, examples: Any, numbers: int
) -> Any:
    """Folds a bounded number of examples at a time into a value.

    Args:
        fn: `fn(carry, some, index) -> carry`: `some` examples and the number of each,
            ascending. Numbers of n or more are repeats that fill the last chunk.
        carry: The value to start with.
        examples: A pytree with a leading axis of n examples.
        numbers: How many numbers an example takes.

    Returns:
        The carry after all examples.
    """
    n = length_of(examples)
    count = _count(n, numbers)
    if count == 1:
        return fn(carry, examples, jnp.arange(n))
    # A loop must start with what it carries: values that vary over the same mesh axes.
    carry, _ = vary_together((carry, examples))

    def step(carry: Any, i: jax.Array) -> tuple[Any, None]:
        return fn(carry, _chunk(examples, i, count), _index(n, i, count)), None

    return lax.scan(step, carry, jnp.arange(count))[0]


def sum_chunks(
    fn: Callable[[Any, jax.Array], Any], examples: Any, weights: jax.Array
) -> Any:
    """Sums `fn(examples, weights)`, which is linear in the weights, over chunks.

    Args:
        fn: Maps examples and a weight for each to a pytree of floating arrays.
        examples: A pytree with a leading axis of n examples.
        weights: (n,).

    Returns:
        What `fn(examples, weights)` would return.
    """
    n = weights.shape[0]
    numbers = numbers_per_example(lambda some: fn(*some), (examples, weights))
    if _count(n, numbers) == 1:
        return fn(examples, weights)

    def step(total: Any, some: Any, index: jax.Array) -> Any:
        some_examples, some_weights = some
        real = jnp.where(index < n, some_weights, 0)
        return jax.tree.map(jnp.add, total, fn(some_examples, real))

    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, examples, weights)
    )
    return fold_chunks(step, zero, (examples, weights), numbers)


def length_of(examples: Any) -> int:
    """The number of examples, of a set that was checked."""
    return jax.tree.leaves(examples)[0].shape[0]


def numbers_held(fn: Callable[[Any], Any], examples: Any) -> int:
    """How many numbers `fn` returns for each example, at least 1."""
    held = jax.tree.leaves(jax.eval_shape(fn, examples))
    return max(1, sum(x.size for x in held) // max(1, length_of(examples)))


def examples_at_once(numbers: int) -> int:
    """How many examples of so many numbers each a chunk may have."""
    room = BUDGET * (1 if jax.default_backend() == "cpu" else ON_ACCELERATORS)
    return max(1, room // max(numbers, 1))


def _count(n: int, numbers: int) -> int:
    """The number of chunks for `n` examples of so many numbers each."""
    most = examples_at_once(numbers)
    least = max(1, -(-n // most))
    # A count that divides n leaves no remainder to fill.
    counts = range(least, min(2 * least, n) + 1)
    return next((count for count in counts if n % count == 0), least)


def _index(n: int, i: jax.Array, count: int) -> jax.Array:
    """The numbers of the examples of chunk i, and n or more for what fills it.

    Chunk i takes examples i, i + count, ...: where they are sharded over devices every
    chunk is, while a chunk of consecutive ones would lie on one device.
    """
    return i + count * jnp.arange(-(-n // count))


def _chunk(examples: Any, i: jax.Array, count: int) -> Any:
    """Chunk i of `count`, the last example repeated to fill it.

    It is taken where it lies: all examples are never copied.
    """

    def take(x: jax.Array) -> jax.Array:
        n, *shape = x.shape
        if n % count == 0:
            rows = x.reshape(n // count, count, *shape)
            return lax.dynamic_index_in_dim(rows, i, axis=1, keepdims=False)
        # A real example as padding: a made-up one could overflow in the user's loss.
        return x[jnp.minimum(_index(n, i, count), n - 1)]

    return jax.tree.map(take, examples)


def numbers_per_example(fn: Callable[[Any], Any], examples: Any) -> int:
    """How many numbers `fn` computes on the way for each example it is given."""
    if jax.tree.leaves(examples)[0].shape[0] <= 1:
        return 1  # One chunk in any case.

    def many(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[:1], (PRIME, *x.shape[1:]))

    shapes = jax.eval_shape(lambda some: jax.tree.map(many, some), examples)
    return _growing(jax.make_jaxpr(fn)(shapes).jaxpr)


def _growing(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        sizes = [v.aval.size for v in equation.outvars]
        total += sum(size // PRIME for size in sizes if size % PRIME == 0)
        # What a loop keeps of each round is among its outputs.
        bodies = [getattr(b, "jaxpr", b) for b in jaxprs_in_params(equation.params)]
        total += max(map(_growing, bodies), default=0)
    return total
