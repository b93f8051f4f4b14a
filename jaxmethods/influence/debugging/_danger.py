"""Which original examples a correction of a model endangers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core import check_integer, check_key, describe, vary_together
from .._aggregate import aggregate
from ._sets import (
    LabelledSet,
    Loss,
    Predict,
    check_labels,
    check_set,
    number_of_labels,
    right,
    take,
)


class InDanger(NamedTuple):
    """Examples that a model gets right before and wrong after a change.

    Attributes:
        indices: (limit,) int, their places in the set, in the order of the scan; 0
            where not valid.
        valid: (limit,) bool, which of the indices are examples found: the first ones.
        scanned: () int, how many examples were looked at.
    """

    indices: jax.Array
    valid: jax.Array
    scanned: jax.Array


def find_in_danger(
    predict: Predict,
    before: Any,
    after: Any,
    inputs: Any,
    labels: jax.Array,
    key: jax.Array,
    *,
    limit: int = 20,
    chunk: int = 256,
) -> InDanger:
    """Finds examples that a model gets right before and wrong after a change.

    The set is scanned in random order and no further than the chunk in which `limit`
    examples have been found: one loop on the device, which the host never waits for.
    The same key gives the same examples for any chunk, and a larger limit more of them
    after those.

    Args:
        predict: `predict(params, inputs)` -> labels (n,), integer, of inputs with a
            leading axis; or (n, number of labels), bool: with which labels each answer
            agrees, as `grouped` makes it. In inference mode: dropout off.
        before: Parameters of the model before the change.
        after: Parameters after it, a pytree of the same structure.
        inputs: A pytree with a leading axis of n examples.
        labels: (n,) integer, 0 or more.
        key: Typed key of the order.
        limit: How many examples are wanted, at least 1.
        chunk: How many examples are predicted at a time, at least 1.

    Returns:
        `InDanger`. Under `shard_map` each device scans its own examples: give each its
        own key.

    Raises:
        ValueError: `limit` or `chunk` below 1; labels unequal in number to the inputs,
            negative, or outside those that `predict` knows; no examples; `before` and
            `after` differ in structure; `predict` returns something else.
        TypeError: Labels that are no integers; a key that is not typed.

    Complexity: two predictions for each example scanned; memory of one chunk.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> predict = lambda params, x: (x > params).astype(int)
        >>> x = jnp.arange(8.0)
        >>> y = predict(3.5, x)
        >>> found = find_in_danger(predict, 3.5, 5.5, x, y, jax.random.key(0), limit=3)
        >>> sorted(found.indices[found.valid].tolist()), int(found.scanned)
        ([4, 5], 8)

    References:
        Malon, Li, Kruus (2022), Fast Few-shot Debugging for NLU Test Suites, arXiv
        2204.06555.
    """
    limit, chunk = check_integer(limit, "limit", 1), check_integer(chunk, "chunk", 1)
    check_key(key)
    some = check_set((inputs, labels), "inputs and labels")
    before, after = (jax.tree.map(jnp.asarray, p) for p in (before, after))
    shapes = [jax.tree.map(describe, p) for p in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"before and after are {shapes[0]} and {shapes[1]}; wanted two sets of "
            "parameters of one model."
        )
    number = number_of_labels(predict, before, some)
    check_labels(some[1], number, "inputs and labels")
    return search(predict, before, after, some, key, limit=limit, chunk=chunk)


class _Scan(NamedTuple):
    """Where a scan stands: what it found, how many, and where the next chunk starts."""

    indices: jax.Array
    found: jax.Array
    start: jax.Array


def search(
    predict: Predict,
    before: Any,
    after: Any,
    some: LabelledSet,
    key: jax.Array,
    *,
    limit: int,
    chunk: int,
    wanted: jax.Array | bool = True,
) -> InDanger:
    """`find_in_danger` of checked arguments; where not `wanted` nothing is scanned."""
    n = some[1].shape[0]
    chunk = min(chunk, n)
    order = shuffled(key, n, chunk)
    before, after, some, order, wanted = vary_together(
        (before, after, some, order, jnp.asarray(wanted))
    )

    def unfinished(scan: _Scan) -> jax.Array:
        return wanted & (scan.found < limit) & (scan.start < n)

    def step(scan: _Scan) -> _Scan:
        places = scan.start + jnp.arange(chunk, dtype=order.dtype)
        # The last chunk is filled with real examples, which do not count twice.
        rows = order[jnp.minimum(places, n - 1)]
        picked = take(some, rows)
        hit = right(predict, before, picked) & ~right(predict, after, picked)
        hit &= places < n
        slots = scan.found + jnp.cumsum(hit, dtype=order.dtype) - 1
        slots = jnp.where(hit, slots, limit)
        indices = scan.indices.at[slots].set(rows, mode="drop")
        found = scan.found + jnp.sum(hit, dtype=order.dtype)
        return _Scan(indices, found, scan.start + chunk)

    zero = jnp.zeros((), order.dtype)
    scan = _Scan(jnp.zeros(limit, order.dtype), zero, zero)
    scan, _ = vary_together((scan, order))
    scan = lax.while_loop(unfinished, step, scan)
    valid = jnp.arange(limit) < scan.found
    return InDanger(scan.indices, valid, jnp.minimum(scan.start, n))


def shuffled(key: jax.Array, n: int, chunk: int) -> jax.Array:
    """0..n-1 in random order.

    Raises:
        ValueError: Places up to a chunk beyond the last do not fit in 32 bits.
    """
    if n + chunk > np.iinfo(np.int32).max and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{n} examples have no places in 32 bits; wanted 64: "
            'jax.config.update("jax_enable_x64", True).'
        )
    return jax.random.permutation(key, n)


def loss_rise(loss: Loss, params: Any, debug_set: Any, original_set: Any) -> jax.Array:
    r"""By how much a step on the debug set raises each original loss, to first order.

    .. math:: -\nabla l(w, x) \cdot \frac{1}{m} \sum_j \nabla l(w, x'_j)

    The aggregated influence of the debug set with its sign turned: the rate at which
    the loss of x grows as plain SGD on the mean debug loss sets out, per unit of
    learning rate. Positive is endangered. It ranks candidates without a corrected
    model, `find_in_danger` compares with one.

    Args:
        loss: `loss(params, (input, label)) -> scalar`, as for `debug`.
        params: A pytree; the floating leaves count.
        debug_set: (inputs, labels), m examples of what is wrong.
        original_set: (inputs, labels), n examples.

    Returns:
        (n,) floats.

    Raises:
        ValueError, TypeError: As `influence.aggregate`; a set is no pair, or empty.

    Complexity: a gradient of the debug set, three forward passes an original example.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda w, example: (w @ example[0] - example[1]) ** 2
        >>> bug = jnp.asarray([[1.0, 0.0]]), jnp.asarray([0])
        >>> original = jnp.asarray([[2.0, 0.0], [0.5, 1.0]]), jnp.asarray([4, 0])
        >>> loss_rise(loss, jnp.asarray([1.0, 0.0]), bug, original).tolist()
        [16.0, -1.0]

    References:
        Pruthi, Liu, Kale, Sundararajan (2020), Estimating Training Data Influence by
        Tracing Gradient Descent, arXiv 2002.08484. Malon, Li, Kruus (2022), arXiv
        2204.06555.
    """
    bug = check_set(debug_set, "debug_set")
    original = check_set(original_set, "original_set")
    m = bug[1].shape[0]
    return aggregate(loss)([params], jnp.ones(1), original, bug, jnp.full(m, -1 / m))
