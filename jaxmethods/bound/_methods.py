"""The bound transforms: a function in, a function from sets to bounds out."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import Variable, check_choice, check_integer, describe
from ._alpha import optimized
from ._backward import Pass, backward
from ._chunks import prove
from ._flow import Flow
from ._forward import Forward
from ._products import without_nan
from ._sets import Bounds, meet
from ._trace import positional
from ._walk import walk, walk_forward

SIDES = ("lower", "upper", "both")
LINEAR_METHODS = ("crown", "crown_ibp", "forward")


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
        argument, by place or by name, or any leaf of one (weights included), may be a
        `Ball` or a `Box`. Traces `fn` at each call: jit it.

    Raises:
        NotImplementedError: A primitive without a rule is reached by a set; the message
            names it, its line, and `register_rule`.
        ValueError: A concrete set is empty or not finite, or log, rsqrt or a quotient
            meets an interval that holds 0.
        TypeError: A set has no floating dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> bounds = bound.ibp(lambda x: jnp.tanh(2 * x))(bound.Ball(jnp.zeros(2), 0.5))
        >>> bounds.upper.round(3)
        Array([0.762, 0.762], dtype=float32)

    References:
        Gowal et al. 2018, arXiv:1810.12715; Xu et al. 2020, arXiv:2002.12920.
    """

    @functools.wraps(fn)
    def bounded(*args: Any, **kwargs: Any) -> Bounds:
        flow = walk(*positional(fn, args, kwargs), "bound.ibp")
        return _collect(flow, lambda v: flow.bounds[v])

    return bounded


def forward(fn: Callable[..., Any]) -> Callable[..., Bounds]:
    """Linear bounds of every value in terms of the sets, in one pass forward.

    Between `crown_ibp` and `crown` in tightness; the cost is that of one evaluation of
    `fn` an entry of the sets, so it suits few inputs and many outputs.

    Args:
        fn: As for `ibp`.

    Returns:
        `bounded(*args) -> Bounds`, as for `ibp`; elementwise never looser.

    Raises:
        As `ibp`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> fn = lambda x: jax.nn.relu(x[0] - x[1]) - x[0]
        >>> box = bound.Box(jnp.zeros(2), jnp.ones(2))
        >>> round(float(bound.forward(fn)(box).upper), 3)
        0.5

    References:
        Xu et al. 2020, arXiv:2002.12920, section 3.1.
    """

    @functools.wraps(fn)
    def bounded(*args: Any, **kwargs: Any) -> Bounds:
        flow, _ = walk_forward(*positional(fn, args, kwargs), "bound.forward")
        return _collect(flow, lambda v: flow.bounds[v])

    return bounded


def crown_ibp(
    fn: Callable[..., Any], *, side: str = "both", chunk: int | None = None
) -> Callable[..., Bounds]:
    """Linear bounds from the outputs back to the sets, over interval bounds inside.

    The bound to train with: intervals for the values inside, one backward pass for the
    outputs; elementwise never looser than `ibp`.

    Args:
        fn: As for `ibp`.
        side: "lower", "upper" or "both"; the side not asked for is sound, not tight.
        chunk: How many entries of a value a pass bounds at once, None for all: the
            same bounds in more passes, whose memory is about `chunk` times the largest
            array inside `fn`.

    Returns:
        `bounded(*args) -> Bounds`, as for `ibp`.

    Raises:
        ValueError: An unknown side, or a chunk below 1; else as `ibp`.
        TypeError: `chunk` is neither None nor an integer; else as `ibp`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> fn = lambda x: jax.nn.relu(x[0] - x[1]) - x[0]
        >>> box = bound.Box(jnp.zeros(2), jnp.ones(2))
        >>> [round(float(m(fn)(box).upper), 3) for m in (bound.ibp, bound.crown_ibp)]
        [1.0, 0.5]

    References:
        Zhang et al. 2020, arXiv:1906.06316; Xu et al. 2020, arXiv:2002.12920.
    """
    return _linear(fn, "crown_ibp", side, chunk)


def crown(
    fn: Callable[..., Any], *, side: str = "both", chunk: int | None = None
) -> Callable[..., Bounds]:
    """Linear bounds from every value that needs one back to the sets.

    As `crown_ibp`, with a backward pass for each nonlinear operation's operand in place
    of its interval: tighter, at a cost quadratic in the depth.

    Args:
        fn: As for `ibp`.
        side: As for `crown_ibp`.
        chunk: As for `crown_ibp`.

    Returns:
        `bounded(*args) -> Bounds`, as for `ibp`; elementwise never looser.

    Raises:
        As `crown_ibp`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> affine = lambda x: jnp.cumsum(x)[::-1] - x  # exact, however it is written
        >>> bound.crown(affine)(bound.Ball(jnp.ones(2), 0.5)).lower.round(3)
        Array([ 0.5, -1. ], dtype=float32)

    References:
        Zhang et al. 2018, arXiv:1811.00866; Xu et al. 2020, arXiv:2002.12920.
    """
    return _linear(fn, "crown", side, chunk)


def alpha_crown(
    fn: Callable[..., Any],
    *,
    num_steps: int = 20,
    side: str = "both",
    num_rows: int = 64,
    chunk: int | None = None,
) -> Callable[..., Bounds]:
    """`crown` with the free choices of its relaxations optimised.

    Tightest and most expensive: `num_steps` steps of gradient ascent on the bounds,
    through the bounds of the values inside, which are optimised along. Functions with
    smooth activations take many times longer to compile than with `crown`.

    Args:
        fn: As for `ibp`.
        num_steps: How many steps; 0 gives `crown`.
        side: As for `crown_ibp`; the two sides are optimised apart.
        num_rows: For how many entries of each value inside, at most, choices are
            optimised; those where it matters most are taken.
        chunk: As for `crown_ibp`, for the bounds to start from.

    Returns:
        `bounded(*args) -> Bounds`, as for `ibp`; elementwise never looser than `crown`.

    Raises:
        ValueError: An unknown side, or a number that is too small; else as `ibp`.
        TypeError: `num_steps`, `num_rows` or `chunk` is no integer; else as `ibp`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> fn = lambda x: jax.nn.relu(x[0] + x[1]) - jax.nn.relu(x[0] - 2 * x[1])
        >>> ball = bound.Ball(jnp.array([0.1, 0.2]), 1.0)
        >>> plain, best = bound.crown(fn)(ball), bound.alpha_crown(fn)(ball)
        >>> bool(best.upper - best.lower < plain.upper - plain.lower)
        True

    References:
        Xu et al. 2021, arXiv:2011.13824; Xu et al. 2020, arXiv:2002.12920.
    """
    check_choice(side, SIDES, "side")
    check_integer(num_steps, "num_steps", 0)
    check_integer(num_rows, "num_rows", 1)
    _check_chunk(chunk)

    @functools.wraps(fn)
    def bounded(*args: Any, **kwargs: Any) -> Bounds:
        refined: list[Variable] = []
        name = "bound.alpha_crown"
        flow = walk(
            *positional(fn, args, kwargs),
            name,
            linear=True,
            refined=refined,
            chunk=chunk,
        )
        best = {
            v: meet(flow.bounds[v], prove(flow, v, side, chunk))
            for v in flow.graph.outputs
            if isinstance(v, Variable)
            and v not in flow.settled
            and jnp.issubdtype(v.dtype, jnp.floating)
        }
        outputs = list(best)
        if outputs and num_steps:
            signs = jnp.array({"lower": [1], "upper": [-1], "both": [1, -1]}[side])
            run = functools.partial(
                optimized,
                flow,
                refined,
                outputs,
                num_steps=num_steps,
                num_rows=num_rows,
            )
            for v, found in zip(outputs, jax.vmap(run)(signs), strict=True):
                missing = jnp.full_like(found[0], jnp.inf)
                lower = -missing if side == "upper" else found[0]
                upper = missing if side == "lower" else -found[-1]
                best[v] = meet(best[v], Bounds(lower, upper))
        return _collect(flow, lambda v: best.get(v, flow.bounds[v]))

    return bounded


def _check_chunk(chunk: int | None) -> None:
    if chunk is not None:
        check_integer(chunk, "chunk", 1)


def _linear(
    fn: Callable[..., Any], method: str, side: str, chunk: int | None
) -> Callable[..., Bounds]:
    check_choice(side, SIDES, "side")
    _check_chunk(chunk)

    @functools.wraps(fn)
    def bounded(*args: Any, **kwargs: Any) -> Bounds:
        refined = [] if method == "crown" else None
        name = f"bound.{method}"
        flow = walk(
            *positional(fn, args, kwargs),
            name,
            linear=True,
            refined=refined,
            chunk=chunk,
        )

        def best(v: Variable) -> Bounds:
            if v in flow.settled or not jnp.issubdtype(v.dtype, jnp.floating):
                return flow.bounds[v]
            return meet(flow.bounds[v], prove(flow, v, side, chunk))

        return _collect(flow, best)

    return bounded


def linear_bounds(
    fn: Callable[..., Any], *, method: str = "crown"
) -> Callable[..., LinearBounds]:
    """The two planes behind `crown`, in terms of the one set among the arguments.

    Args:
        fn: As for `ibp`.
        method: "crown", "crown_ibp" or "forward".

    Returns:
        `bounded(*args) -> LinearBounds`.

    Raises:
        ValueError: An unknown method, or not exactly one set that holds one array; else
            as `ibp`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> ball = bound.Ball(jnp.zeros(()), 1.0)
        >>> planes = bound.linear_bounds(lambda x: jax.nn.relu(x))(ball)
        >>> round(float(planes.upper_slope), 3), round(float(planes.upper_bias), 3)
        (0.5, 0.5)

    References:
        Zhang et al. 2018, arXiv:1811.00866, theorem 3.2.
    """
    check_choice(method, LINEAR_METHODS, "method")

    @functools.wraps(fn)
    def bounded(*args: Any, **kwargs: Any) -> LinearBounds:
        name = f"bound.linear_bounds(method={method!r})"
        forward = None
        if method == "forward":
            flow, forward = walk_forward(*positional(fn, args, kwargs), name)
        else:
            refined = [] if method == "crown" else None
            flow = walk(
                *positional(fn, args, kwargs), name, linear=True, refined=refined
            )
        if len(flow.graph.inputs) != 1:
            raise ValueError(
                f"linear_bounds got sets of {len(flow.graph.inputs)} arrays in all; "
                "wanted one set that holds one array: give the others as arrays, or "
                "concatenate them."
            )
        planes = [_planes(flow, atom, forward) for atom in flow.graph.outputs]
        unflatten = flow.graph.treedef.unflatten
        return LinearBounds(
            *(unflatten(list(part)) for part in zip(*planes, strict=True))
        )

    return bounded


def _collect(flow: Flow, bounds: Callable[[Variable], Bounds]) -> Bounds:
    ends = [
        bounds(atom) if isinstance(atom, Variable) else Bounds(atom, atom)
        for atom in flow.graph.outputs
    ]
    unflatten = flow.graph.treedef.unflatten
    return Bounds(*(unflatten([e[side] for e in ends]) for side in (0, 1)))


def _planes(flow: Flow, atom: Any, forward: Forward | None) -> LinearBounds:
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
    if forward is not None:
        lower, upper = forward.planes(atom)
        shape = (*atom.shape, *x.shape)
        slopes = [
            jnp.moveaxis(side[:-1].reshape(x.aval.size, *atom.shape), 0, -1)
            for side in (lower, upper)
        ]
        low, high = without_nan(Bounds(lower[-1], upper[-1]))
        return LinearBounds(
            slopes[0].reshape(shape), low, slopes[1].reshape(shape), high
        )
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
