"""What the gradient of a loss gathers and reduces, parameter by parameter."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import (
    Node,
    Site,
    Variable,
    as_body,
    flatten_body,
    interpret,
    occurring,
    scan_arity,
)
from ._layout import DATA_LABEL

_PRODUCTS = ("dot_general", "conv_general_dilated")
_LOOPS = ("scan", "while", "cond")
_AGAIN = ("remat2", "remat", "checkpoint")


@dataclass(frozen=True)
class Traffic:
    """Bytes over all devices, by parameter, were each product and sum on its own.

    Attributes:
        reduced: Of sums over examples that its gradient is made of: one a use, in the
            dtype and shape in which it is summed. A sum of several parameters'
            gradients counts for the first.
        stacked: Of those among them of which each round of a loop makes a part.
        gathered: Of the parameter as products take it: forward, again where
            `jax.checkpoint` computes again, and backward.
        repeats: How often its product is computed again for the gradient.
    """

    reduced: Counter[int] = field(default_factory=Counter)
    stacked: Counter[int] = field(default_factory=Counter)
    gathered: Counter[int] = field(default_factory=Counter)
    repeats: Counter[int] = field(default_factory=Counter)


def traffic_of(
    loss: Callable[[Any, Any], jax.Array], params: Any, batch: Any
) -> Traffic:
    """Reads the traffic of one gradient from its jaxpr.

    Args:
        loss: Any scalar function of parameters and a batch.
        params: A pytree; shapes and dtypes suffice.
        batch: A pytree of the whole batch; shapes and dtypes suffice.

    Returns:
        A `Traffic`.

    Example:
        >>> w = [jnp.ones((3, 8)), jnp.ones((8, 2))]
        >>> net = lambda w, x: (jnp.tanh(x @ w[0]) @ w[1]).sum()
        >>> made = traffic_of(net, w, jnp.ones((5, 3)))
        >>> made.reduced
        Counter({0: 96, 1: 64})
        >>> made.gathered  # the first layer's rows take no gradient
        Counter({1: 128, 0: 96})
    """
    leaves, treedef = jax.tree.flatten(params)
    trained = [n for n, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def gradients(leaves: Any, batch: Any) -> list[jax.Array]:
        def of_trained(some: Any) -> jax.Array:
            all_leaves = list(leaves)
            for number, x in zip(trained, some, strict=True):
                all_leaves[number] = x
            return loss(treedef.unflatten(all_leaves), batch)

        value, grads = jax.value_and_grad(of_trained)([leaves[n] for n in trained])
        return [*grads, value]

    closed = jax.make_jaxpr(gradients)(leaves, batch)
    traffic = Traffic()
    _reductions(closed, trained, len(leaves), traffic)
    _gathers(closed, leaves, traffic)
    return traffic


def _reductions(
    closed: Any, trained: list[int], num_leaves: int, traffic: Traffic
) -> None:
    body = as_body(closed)
    inputs = tuple(Variable(v.aval) for v in body.jaxpr.invars)
    graph = flatten_body(body, inputs, inputs)
    made = {out: node for node in graph.nodes for out in node.outputs}
    data, seen = set(inputs[num_leaves:]), set()
    for node in graph.nodes:
        if not data.isdisjoint(node.variables):
            data.update(node.outputs)
    for leaf, gradient in zip(trained, graph.outputs, strict=False):
        waiting = [gradient]
        while waiting:
            atom = waiting.pop()
            node = made.get(atom) if isinstance(atom, Variable) else None
            if node is None or atom not in data or atom in seen:
                continue
            seen.add(atom)
            # Of a sum and a parameter: linear in what is summed before.
            sums = node.name in _PRODUCTS and data.issuperset(node.variables)
            sums |= node.name.startswith(("reduce_", "scatter", "cum"))
            if sums or node.name in _LOOPS:
                traffic.reduced[leaf] += _nbytes(atom)
                if node.name == "scan" and _is_stacked(node, atom):
                    traffic.stacked[leaf] += _nbytes(atom)
            else:
                waiting += node.inputs


def _is_stacked(node: Node, atom: Any) -> bool:
    return node.outputs.index(atom) >= scan_arity(node.equation)[1]


def _gathers(closed: Any, leaves: list[Any], traffic: Traffic) -> None:
    products: dict[tuple[int, ...], tuple[int, Any, int]] = {}

    def count(site: Site, *operands: jax.Array) -> Any:
        alone = [bool(x) and DATA_LABEL not in x for x in site.labels]
        if sum(alone) == 1 and len(site.labels[alone.index(True)]) == 1:
            position = alone.index(True)
            (leaf,) = site.labels[position]
            kernel = operands[position]
            how = (site.equation.primitive, kernel.shape, position)
            how += (site.equation.params["dimension_numbers"],)
            products[site.position] = (leaf, how, kernel.dtype.itemsize)
        return NotImplemented

    avals = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars
    ]
    labels: list[Any] = [{number} for number in range(len(leaves))]
    labels += [{DATA_LABEL}] * (len(avals) - len(leaves))
    rules = dict.fromkeys(_PRODUCTS, count)
    jax.eval_shape(
        lambda *values: interpret(
            closed, rules, values, labels=labels, inline=("jit", "pjit")
        ),
        *avals,
    )
    first: dict[int, Any] = {}
    again = bool(occurring(closed, _AGAIN))
    for leaf, how, itemsize in products.values():
        traffic.gathered[leaf] += math.prod(leaves[leaf].shape) * itemsize
        if leaf not in first:
            first[leaf] = how
        elif again and how == first[leaf]:
            traffic.repeats[leaf] += 1


def _nbytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize
