"""Taylor models: a polynomial of few inputs, and how far a function may be from it.

With d how far the inputs are from the centre of their box, each value is

    c_0 + sum_i c_i d_i + sum_ij c_ij d_i d_j + e,  |e| <= error.

Affine operations and products act on the coefficients; what a product has of higher
degree goes to the error. A smooth function of one variable is its own Taylor polynomial
at c_0, with the remainder of Lagrange: the interval of a derivative of one variable, by
`ibp`. No derivative of the whole function is taken, so that a custom rule for one, such
as a straight-through estimator, does no harm.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import (
    PATTERNS,
    Graph,
    Node,
    Variable,
    check_choice,
    flatten,
    inline_cond,
    is_affine,
    is_bilinear,
    is_concrete,
    match_patterns,
    match_softmax,
    source_line,
    unroll_scan,
    without_repeats,
)
from ._methods import ibp
from ._polynomials import Model, affine, inputs, product, range_of, univariate
from ._prepare import full_precision
from ._sets import Bounds, is_set, meet
from ._smooth import KINKED, SMOOTH, scalar, tower
from ._trace import positional

MOST_INPUTS = 16


def taylor(fn: Callable[..., Any], *, degree: int = 2) -> Callable[..., Bounds]:
    """Bounds from a Taylor polynomial with a remainder, for few inputs.

    The excess over the true range shrinks like radius^(degree + 1) as the set shrinks,
    for degree 2 wherever no slope changes its sign; that of `ibp` like the radius. So
    it is the tightest method on small boxes, and not on large ones.

    Args:
        fn: As for `ibp`, of smooth operations: no kink, jump or comparison may depend
            on a set. Kinks (relu, abs, maximum) are fine for degree 1.
        degree: Of the polynomial: 1 or 2.

    Returns:
        `bounded(*args) -> Bounds`, as for `ibp`; elementwise never looser. Sets count
        as the smallest box round them, and have 16 entries in all at most.

    Raises:
        NotImplementedError: An operation is not known to be smooth; the message names
            it and its line.
        ValueError: Another degree, or more entries; else as `ibp`.
        TypeError: As `ibp`.

    Complexity:
        n^2 evaluations of fn for n entries of the sets.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> weights = jnp.array([[1.0, 2.0], [-2.0, -1.0]])
        >>> fn = lambda x: jnp.tanh(x @ weights) @ jnp.array([1.0, -1.0])
        >>> ball = bound.Ball(jnp.array([0.5, 0.2]), 0.1)
        >>> bounds = [jax.jit(m(fn))(ball) for m in (bound.ibp, bound.taylor)]
        >>> [round(float(b.upper - b.lower), 2) for b in bounds]
        [0.92, 0.33]

    References:
        Berz, Hoffstätter. Computation and application of Taylor polynomials with
        interval remainder bounds. Reliable Computing 4, 1998.
        Streeter, Dillon. Automatically bounding the Taylor remainder series: tighter
        bounds and new applications. 2022, arXiv:2212.11429.
    """
    check_choice(degree, (1, 2), "degree")

    @functools.wraps(fn)
    def bounded(*args: Any, **kwargs: Any) -> Bounds:
        called, given = positional(fn, args, kwargs)
        graph, hull = _traced(called, given)
        _check(graph, degree)
        plain = ibp(called)(*given)
        ends, treedef = jax.tree.flatten(plain.lower)
        own = [Bounds(*b) for b in zip(ends, jax.tree.leaves(plain.upper), strict=True)]
        known = _walk(graph, inputs(hull), degree)
        found = [
            meet(b, range_of(known[v])) if isinstance(v, Variable) else b
            for v, b in zip(graph.outputs, own, strict=True)
        ]
        return Bounds(*(treedef.unflatten([b[i] for b in found]) for i in (0, 1)))

    return bounded


def _traced(fn: Callable[..., Any], args: Sequence[Any]) -> tuple[Graph, list[Bounds]]:
    """The graph of the primitives of fn, and the interval of each of its inputs."""
    leaves, treedef = jax.tree.flatten(args, is_leaf=is_set)
    marked = []
    for leaf in leaves:
        if is_set(leaf):
            leaf.check()
        num = len(jax.tree.leaves(leaf.placeholder)) if is_set(leaf) else 1
        marked += [is_set(leaf)] * num
    hull = [ends for leaf in leaves if is_set(leaf) for ends in leaf.hull()]
    size = sum(ends.lower.size for ends in hull)
    if size > MOST_INPUTS:
        raise ValueError(
            f"bound.taylor got sets of {size} entries in all; wanted at most "
            f"{MOST_INPUTS}: use bound.crown."
        )
    filled = treedef.unflatten(s.placeholder if is_set(s) else s for s in leaves)
    loops = {"cond": inline_cond, "scan": unroll_scan}
    graph = flatten(fn, *filled, marked=marked, inline=loops)
    graph = match_softmax(without_repeats(graph))
    wanted = (PATTERNS[name] for name in PATTERNS if name in SMOOTH | KINKED)
    return match_patterns(graph, wanted), hull


def _walk(graph: Graph, models: Sequence[Model], degree: int) -> dict[Variable, Model]:
    """The models of all values of a graph."""
    known = dict(zip(graph.inputs, models, strict=True))
    for node in graph.nodes:
        rule: Any = _rule(node, degree)
        outs = rule(*(known[v] for v in node.variables))
        known.update(zip(node.outputs, outs, strict=True))
    return known


def _rule(node: Node, degree: int) -> Callable[..., list[Model]] | None:
    """From the models of a node's variables to its own; None where it is not known."""
    node = full_precision(node)
    if is_affine(node):
        return lambda *models: affine(node, models)
    if is_bilinear(node):
        return lambda x, y: [product(node, x, y, degree)]
    others = [scalar(a) for a in node.inputs if not isinstance(a, Variable)]
    alone = len(node.variables) == 1 and None not in others
    if node.name in KINKED and degree == 2:
        return None
    if alone and node.name in SMOOTH | KINKED:
        return lambda x: [univariate(tower(node, degree), x)]
    if node.name in _EXPANSIONS:
        return functools.partial(_expanded, node, degree)
    return None


def _expanded(node: Node, degree: int, *models: Model) -> list[Model]:
    """The model of an operation from those that it is made of."""
    marked = [isinstance(a, Variable) for a in node.inputs]
    avals = [
        jax.ShapeDtypeStruct(a.shape, a.dtype) if m else a
        for a, m in zip(node.inputs, marked, strict=True)
    ]
    expand = functools.partial(_EXPANSIONS[node.name], node, models[0].middle)
    graph = flatten(expand, *avals, marked=marked)
    return [_walk(graph, models, degree)[graph.outputs[0]]]


def _check(graph: Graph, degree: int) -> None:
    """Raises where an operation is not known."""
    wanted, other = ("smooth", "degree=1 or ") if degree == 2 else ("continuous", "")
    for node in graph.nodes:
        if _rule(node, degree) is None:
            raise NotImplementedError(
                f"bound.taylor(degree={degree}) meets the primitive {node.name!r} at "
                f"{source_line(node.equation)}; wanted operations that are known to be "
                f"{wanted} where a set reaches them: use {other}bound.crown."
            )


def _power(node: Node, middle: Any, x: Any, y: Any) -> Any:
    exponent = scalar(node.inputs[1])
    if exponent is not None and is_concrete(exponent):
        power = round(float(exponent))
        if power == exponent and power != 0:
            return lax.integer_pow(x, power)
    return jnp.exp(y * jnp.log(x))


def _softmax(node: Node, middle: Any, x: Any) -> Any:
    exps = jnp.exp(x - _shift(node, middle))
    return exps / exps.sum(node.params["axes"], keepdims=True)


def _log_softmax(node: Node, middle: Any, x: Any) -> Any:
    moved = x - _shift(node, middle)
    total = jnp.exp(moved).sum(node.params["axes"], keepdims=True)
    return moved - jnp.log(total)


def _logsumexp(node: Node, middle: Any, x: Any) -> Any:
    shift = _shift(node, middle)
    total = jnp.exp(x - shift).sum(node.params["axes"])
    return jnp.log(total) + shift.reshape(total.shape)


def _shift(node: Node, middle: Any) -> Any:
    return lax.stop_gradient(jnp.max(middle, node.params["axes"], keepdims=True))


# What operations that are not elementwise functions of one value are made of.
_EXPANSIONS: dict[str, Callable[..., Any]] = {
    "clamp": lambda node, _, low, x, high: jnp.minimum(jnp.maximum(x, low), high),
    "div": lambda node, _, x, y: x * lax.integer_pow(y, -1),
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "max": lambda node, _, x, y: y + jnp.maximum(x - y, 0.0),
    "min": lambda node, _, x, y: y + jnp.minimum(x - y, 0.0),
    "pow": _power,
    "softmax": _softmax,
}
