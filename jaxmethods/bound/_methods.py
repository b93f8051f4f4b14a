"""The bound transforms: a function in, a function from sets to bounds out."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import Variable, check_choice, describe, is_affine
from ._backward import Pass, backward, concretize
from ._flow import (
    Flow,
    floating,
    magnitude_of_inputs,
    prepare_backward,
    start,
    visit,
)
from ._products import without_nan
from ._sets import Bounds, meet
from ._trace import trace

SIDES = ("lower", "upper", "both")
LINEAR_METHODS = ("crown", "crown_ibp")


class LinearBounds(NamedTuple):
    """Two planes that enclose a function over a set.

    lower_slope . x + lower_bias <= fn(x) <= upper_slope . x + upper_bias

    Attributes:
        lower_slope: Shape out_shape + set_shape; like all fields a pytree as fn's.
        lower_bias: Shape out_shape.
        upper_slope: As `lower_slope`.
        upper_bias: As `lower_bias`.
    """

    lower_slope: Any
    lower_bias: Any
    upper_slope: Any
    upper_bias: Any


def ibp(fn: Callable[..., Any]) -> Callable[..., Bounds]:
    """Interval bounds of any function, carried through it operation by operation.

    Cheapest and widest: about two evaluations of `fn`. An lp ball meets the first
    affine operation exactly, by the dual norm; the last one merges with what `margins`
    adds.

    Args:
        fn: Any function of pytrees of arrays; one example a call, batch with `vmap`.

    Returns:
        `bounded(*args) -> Bounds`, of the structure, shapes and dtype of `fn`. Any
        argument, or any leaf of one (weights included), may be a `Ball` or a `Box`.
        Traces `fn` at each call: jit it.

    Raises:
        NotImplementedError: A primitive without a rule is reached by a set; the message
            names it, its line, and `register_rule`.
        ValueError: A concrete set is empty or not finite, or log, rsqrt or a quotient
            meets an interval that holds 0.
        TypeError: A set has no floating dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.bound import Ball
        >>> bounds = ibp(lambda x: jnp.tanh(2 * x))(Ball(jnp.zeros(2), 0.5))
        >>> bounds.upper.round(3)
        Array([0.762, 0.762], dtype=float32)

    References:
        Gowal et al. 2018, arXiv:1810.12715; Xu et al. 2020, arXiv:2002.12920.
    """

    @functools.wraps(fn)
    def bounded(*args: Any) -> Bounds:
        flow = _walk(fn, args, "bound.ibp")
        return _collect(flow, lambda v: flow.bounds[v])

    return bounded


def crown_ibp(fn: Callable[..., Any], *, side: str = "both") -> Callable[..., Bounds]:
    """Linear bounds from the outputs back to the sets, over interval bounds inside.

    The bound to train with: intervals for the values inside, one backward pass for the
    outputs; elementwise never looser than `ibp`.

    Args:
        fn: As for `ibp`.
        side: "lower", "upper" or "both"; the side not asked for is sound, not tight.

    Returns:
        `bounded(*args) -> Bounds`, as for `ibp`.

    Raises:
        ValueError: An unknown side; else as `ibp`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.bound import Box
        >>> fn = lambda x: jax.nn.relu(x[0] - x[1]) - x[0]
        >>> box = Box(jnp.zeros(2), jnp.ones(2))
        >>> [round(float(m(fn)(box).upper), 3) for m in (ibp, crown_ibp)]
        [1.0, 0.5]

    References:
        Zhang et al. 2020, arXiv:1906.06316; Xu et al. 2020, arXiv:2002.12920.
    """
    return _linear(fn, "crown_ibp", side)


def crown(fn: Callable[..., Any], *, side: str = "both") -> Callable[..., Bounds]:
    """Linear bounds from every value that needs one back to the sets.

    As `crown_ibp`, with a backward pass for each nonlinear operation's operand in place
    of its interval: tighter, at a cost quadratic in the depth.

    Args:
        fn: As for `ibp`.
        side: As for `crown_ibp`.

    Returns:
        `bounded(*args) -> Bounds`, as for `ibp`; elementwise never looser.

    Raises:
        ValueError: An unknown side; else as `ibp`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.bound import Ball
        >>> affine = lambda x: jnp.cumsum(x)[::-1] - x  # exact, however it is written
        >>> crown(affine)(Ball(jnp.ones(2), 0.5)).lower.round(3)
        Array([ 0.5, -1. ], dtype=float32)

    References:
        Zhang et al. 2018, arXiv:1811.00866; Xu et al. 2020, arXiv:2002.12920.
    """
    return _linear(fn, "crown", side)


def _linear(fn: Callable[..., Any], method: str, side: str) -> Callable[..., Bounds]:
    check_choice(side, SIDES, "side")

    @functools.wraps(fn)
    def bounded(*args: Any) -> Bounds:
        flow = _walk(fn, args, f"bound.{method}", linear=True, refine=method == "crown")

        def best(v: Variable) -> Bounds:
            if v in flow.settled or not jnp.issubdtype(v.dtype, jnp.floating):
                return flow.bounds[v]
            found = concretize(flow, backward(flow, v, side), v, side)
            return meet(flow.bounds[v], found)

        return _collect(flow, best)

    return bounded


def linear_bounds(
    fn: Callable[..., Any], *, method: str = "crown"
) -> Callable[..., LinearBounds]:
    """The two planes behind `crown`, in terms of the one set among the arguments.

    Args:
        fn: As for `ibp`.
        method: "crown" or "crown_ibp".

    Returns:
        `bounded(*args) -> LinearBounds`.

    Raises:
        ValueError: An unknown method, or not exactly one set that holds one array; else
            as `ibp`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.bound import Ball
        >>> planes = linear_bounds(lambda x: jax.nn.relu(x))(Ball(jnp.zeros(()), 1.0))
        >>> round(float(planes.upper_slope), 3), round(float(planes.upper_bias), 3)
        (0.5, 0.5)

    References:
        Zhang et al. 2018, arXiv:1811.00866, theorem 3.2.
    """
    check_choice(method, LINEAR_METHODS, "method")

    @functools.wraps(fn)
    def bounded(*args: Any) -> LinearBounds:
        name = f"bound.linear_bounds(method={method!r})"
        flow = _walk(fn, args, name, linear=True, refine=method == "crown")
        if len(flow.graph.inputs) != 1:
            raise ValueError(
                f"linear_bounds got sets of {len(flow.graph.inputs)} arrays in all; "
                "wanted one set that holds one array: give the others as arrays, or "
                "concatenate them."
            )
        planes = [_planes(flow, atom) for atom in flow.graph.outputs]
        unflatten = flow.graph.treedef.unflatten
        return LinearBounds(
            *(unflatten(list(part)) for part in zip(*planes, strict=True))
        )

    return bounded


def _walk(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    method: str,
    *,
    linear: bool = False,
    refine: bool = False,
) -> Flow:
    """Visits all nodes; `refine`: backward passes bound what nonlinear nodes read."""
    graph, region = trace(fn, args)
    flow, known = start(graph, region, method)
    if linear:
        magnitude_of_inputs(flow)
    for node in graph.nodes:
        if refine and not is_affine(node):
            for v in floating(node):
                if v not in flow.settled:
                    found = concretize(flow, backward(flow, v, "both"), v, "both")
                    flow.bounds[v] = meet(flow.bounds[v], found)
                    flow.settled.add(v)
        visit(flow, known, node)
        if linear:
            prepare_backward(flow, node)
    return flow


def _collect(flow: Flow, bounds: Callable[[Variable], Bounds]) -> Bounds:
    ends = [
        bounds(atom) if isinstance(atom, Variable) else Bounds(atom, atom)
        for atom in flow.graph.outputs
    ]
    unflatten = flow.graph.treedef.unflatten
    return Bounds(*(unflatten([e[side] for e in ends]) for side in (0, 1)))


def _planes(flow: Flow, atom: Any) -> LinearBounds:
    (x,) = flow.graph.inputs
    if not jnp.issubdtype(atom.dtype, jnp.floating):
        raise TypeError(
            f"linear_bounds got a function that returns {describe(atom)}; wanted "
            "floating results: bound.ibp bounds integers and truth values."
        )
    if not isinstance(atom, Variable):
        atom = jnp.asarray(atom)
        flat = jnp.zeros((*atom.shape, *x.shape), x.dtype)
        return LinearBounds(flat, atom, flat, atom)
    state = backward(flow, atom, "both")
    slope, bias = _slope(state, x, atom), state.bias
    low, high = bias - state.slack, bias + state.slack
    upper_slope = slope
    if state.parted:
        slope, upper_slope = jnp.split(slope, 2)
        low, high = jnp.split(low, 2)[0], -jnp.split(low, 2)[1]
        upper_slope = -upper_slope
    low, high = without_nan(Bounds(low.reshape(atom.shape), high.reshape(atom.shape)))
    shape = (*atom.shape, *x.shape)
    return LinearBounds(slope.reshape(shape), low, upper_slope.reshape(shape), high)


def _slope(state: Pass, x: Variable, atom: Variable) -> jax.Array:
    if x in state.rows:
        return state.rows[x].dense()
    return jnp.zeros((state.bias.size, *x.shape), x.dtype)
