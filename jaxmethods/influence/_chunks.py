"""Maps over examples a bounded number at a time, never dropping a remainder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import jaxprs_in_params

from ..core import leaf_paths, vary_together

# Numbers (not bytes) that the intermediate values of one chunk may fill.
BUDGET = 2**24
# A count of examples that no other axis is likely to have or to be a multiple of.
PRIME = 10007


def count_examples(examples: Any, name: str, *, empty: bool = False) -> int:
    """The length of the leading axis that all leaves share.

    Raises:
        ValueError: A leaf without that axis, or none, or (unless `empty`) length 0.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(examples)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths:
        found = dict(zip(leaf_paths(examples), shapes, strict=True))
        raise ValueError(
            f"{name} has leaves of shapes {found}; wanted one leading axis of "
            "examples, equally long in each leaf."
        )
    length = lengths.pop()[0]
    if length == 0 and not empty:
        raise ValueError(
            f"{name} has no examples: shapes {shapes}; wanted one or more."
        )
    return length


def map_chunks(
    fn: Callable[[Any], Any], examples: Any, numbers: int | None = None
) -> Any:
    """Applies `fn` to a bounded number of examples at a time and joins the results.

    Args:
        fn: Maps examples with a leading axis to a pytree with the same leading axis;
            each of its rows depends on one example.
        examples: A pytree with a leading axis of examples.
        numbers: How many numbers an example takes; None: all that `fn` computes.

    Returns:
        What `fn(examples)` would return.
    """
    n = jax.tree.leaves(examples)[0].shape[0]
    count = _count(n, numbers or _numbers_per_example(fn, examples))
    if count == 1:
        return fn(examples)

    def join(x: jax.Array) -> jax.Array:
        width, *shape = x.shape[1:]
        return x.swapaxes(0, 1).reshape(width * count, *shape)[:n]

    return jax.tree.map(join, lax.map(fn, _split(examples, count)))


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
    both = (examples, weights)
    count = _count(n, _numbers_per_example(lambda some: fn(*some), both))
    if count == 1:
        return fn(examples, weights)
    some, rest = _split(both, count)
    real = jnp.arange(rest.size).reshape(rest.shape[::-1]).T < n
    chunks = (some, jnp.where(real, rest, 0))

    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, examples, weights)
    )
    # A loop must start with what it carries: values that vary over the same mesh axes.
    zero, _ = vary_together((zero, weights))

    def step(total: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, fn(*chunk)), None

    return lax.scan(step, zero, chunks)[0]


def _count(n: int, numbers: int) -> int:
    """The number of chunks for `n` examples of so many numbers each."""
    most = max(1, BUDGET // max(numbers, 1))
    return max(1, -(-n // most))


def _split(examples: Any, count: int) -> Any:
    """Cuts a leading axis into (count, width), the last examples repeated to fill it.

    Chunk i takes examples i, i + count, ...: where they are sharded over devices every
    chunk is, while a chunk of consecutive ones would lie on one device.
    """

    def split(x: jax.Array) -> jax.Array:
        n, *shape = x.shape
        width = -(-n // count)
        # Real examples as padding: a made-up one could overflow in the user's loss.
        extra = jnp.broadcast_to(x[-1:], (count * width - n, *shape))
        return jnp.concatenate([x, extra]).reshape(width, count, *shape).swapaxes(0, 1)

    return jax.tree.map(split, examples)


def _numbers_per_example(fn: Callable[[Any], Any], examples: Any) -> int:
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
