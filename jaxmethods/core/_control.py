"""What becomes of loops and branches in a flat graph: `inline` rules of `flatten`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn, Literal, jaxprs_in_params

from ._checks import is_concrete
from ._flatten import Flattening
from ._graph import Variable
from ._source import source_line
from ._versions import Body, as_body, bind, call_body, scan_arity

# A graph of more operations takes minutes to compile.
MOST_UNROLLED = 20_000


def keep_whole(
    flattening: Flattening, equation: JaxprEqn, inputs: list[Any], wanted: list[bool]
) -> list[Any]:
    """Keeps a call as one node, which `flatten` would replace by its body."""
    del wanted
    avals, name = [v.aval for v in equation.outvars], equation.primitive.name
    evaluate = partial(bind, equation)
    return flattening.emit(name, inputs, avals, evaluate, equation, equation.params)


def skip(
    flattening: Flattening, equation: JaxprEqn, inputs: list[Any], wanted: list[bool]
) -> list[Any]:
    """Leaves out an operation whose outputs are its inputs."""
    del flattening, equation, wanted
    return inputs


def inline_cond(
    flattening: Flattening, equation: JaxprEqn, inputs: list[Any], wanted: list[bool]
) -> list[Any]:
    """Puts both branches of a `cond`, or all of a `switch`, and a choice of outputs.

    Where the index is known, the branch that is taken stands alone. The choice is the
    primitive `select_n`.

    Example:
        >>> import jax
        >>> from jaxmethods.core import flatten
        >>> fn = lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)
        >>> graph = flatten(fn, 1.0, inline={"cond": inline_cond})
        >>> [node.name for node in graph.nodes]
        ['gt', 'convert_element_type', 'cos', 'sin', 'select_n']
    """
    index, *operands = inputs
    branches = [as_body(b) for b in equation.params["branches"]]
    if not isinstance(index, Variable) and is_concrete(index):
        branch = branches[int(np.clip(index, 0, len(branches) - 1))]
        return flattening.walk(branch, operands, wanted, equation)
    cases = [flattening.walk(b, operands, wanted, equation) for b in branches]

    def choose(which: Any, *values: Any) -> list[Any]:
        if len(values) == 2:  # a predicate has to be a truth value there
            which = which.astype(bool)
        return [lax.select_n(which, *map(jnp.asarray, values))]

    outs = []
    for i, out in enumerate(equation.outvars):
        first, *others = values = [case[i] for case in cases]
        if all(other is first for other in others):
            outs.append(first)
            continue
        values = [_like(v, out.aval) for v in values]
        outs += flattening.emit(
            "select_n", [index, *values], [out.aval], choose, equation
        )
    return outs


def unroll_scan(
    flattening: Flattening, equation: JaxprEqn, inputs: list[Any], wanted: list[bool]
) -> list[Any]:
    """Puts the body of a `scan` once a step.

    Raises:
        NotImplementedError: That would be more than `MOST_UNROLLED` operations.

    Example:
        >>> import jax
        >>> from jaxmethods.core import flatten
        >>> fn = lambda x: jax.lax.scan(lambda c, y: (c * y, c), x[0], x)[0]
        >>> graph = flatten(fn, jnp.ones(3), inline={"scan": unroll_scan})
        >>> [node.name for node in graph.nodes]
        ['slice', 'squeeze', 'unstack', 'mul', 'mul', 'mul']
    """
    params = equation.params
    body, length = as_body(params["jaxpr"]), params["length"]
    num_consts, num_carry = scan_arity(equation)
    _check_size(equation, length * num_equations(body))
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    steps = [
        _unstacked(flattening, equation, x, length)
        for x in inputs[num_consts + num_carry :]
    ]
    needed = _needed_in_body(body, num_consts, num_carry, wanted)
    ys: list[list[Any]] = []
    order = range(length)[::-1] if params["reverse"] else range(length)
    for i in order:
        atoms = [*consts, *carry, *(x[i] for x in steps)]
        outs = flattening.walk(body, atoms, needed, equation)
        carry = outs[:num_carry]
        ys.append(outs[num_carry:])
    if params["reverse"]:
        ys.reverse()
    stacked = [
        _stacked(flattening, equation, [y[i] for y in ys], out.aval)
        if wanted[num_carry + i]
        else None
        for i, out in enumerate(equation.outvars[num_carry:])
    ]
    return [*carry, *stacked]


def reached(body: Body, marks: Sequence[bool]) -> list[bool]:
    """Which outputs of a body a graph of it may have variables for.

    Args:
        body: The body of a loop.
        marks: Which of its inputs are variables.
    """
    env: dict[Any, bool] = dict(zip(body.jaxpr.invars, marks, strict=True))

    def read(var: Any) -> bool:
        return not isinstance(var, Literal) and env.get(var, False)

    for equation in body.jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        inner = call_body(equation)
        if inner is not None:
            outs = reached(inner, inputs)
        elif equation.primitive.name == "cond":
            found = [
                reached(as_body(b), inputs[1:]) for b in equation.params["branches"]
            ]
            outs = [inputs[0] or any(marks) for marks in zip(*found, strict=True)]
        else:
            outs = [any(inputs)] * len(equation.outvars)
        env.update(zip(equation.outvars, outs, strict=True))
    return [read(v) for v in body.jaxpr.outvars]


def num_equations(body: Body) -> int:
    """How many operations a body makes, those of bodies inside it included."""
    total = 0
    for equation in body.jaxpr.eqns:
        inner = [as_body(b) for b in jaxprs_in_params(equation.params)]
        steps = equation.params.get("length", 1)
        repeats = steps if equation.primitive.name == "scan" else 1
        total += repeats * sum(map(num_equations, inner)) if inner else 1
    return total


def _check_size(equation: JaxprEqn, size: int) -> None:
    if size > MOST_UNROLLED:
        raise NotImplementedError(
            f"the scan of length {equation.params['length']} at "
            f"{source_line(equation)} would be {size} operations when it is unrolled; "
            f"at most {MOST_UNROLLED} are: shorten it, or ask for interval bounds, "
            "which keep the loop."
        )


def _needed_in_body(
    body: Body, num_consts: int, num_carry: int, wanted: Sequence[bool]
) -> list[bool]:
    """Which outputs of the body any step needs.

    A carried value that only its own next value reads, such as an unused key, is not.
    """
    needed = list(wanted)
    while True:
        alive = _read_by(body, needed)
        carried = alive[num_consts : num_consts + num_carry]
        grown = [a or b for a, b in zip(needed, carried, strict=False)]
        grown += needed[num_carry:]
        if grown == needed:
            return needed
        needed = grown


def _read_by(body: Body, needed: Sequence[bool]) -> list[bool]:
    """Which inputs of a body its needed outputs depend on."""
    alive = {
        v
        for v, n in zip(body.jaxpr.outvars, needed, strict=True)
        if n and not isinstance(v, Literal)
    }
    for equation in reversed(body.jaxpr.eqns):
        if not alive.isdisjoint(equation.outvars):
            alive.update(v for v in equation.invars if not isinstance(v, Literal))
    return [v in alive for v in body.jaxpr.invars]


def _unstacked(
    flattening: Flattening, equation: JaxprEqn, x: Any, length: int
) -> list[Any]:
    """The entries of an array along its first axis."""
    if not isinstance(x, Variable):
        return [x[i] for i in range(length)]

    def unstack(x: Any) -> list[Any]:
        return [x[i] for i in range(length)]

    aval = x.aval.update(shape=x.shape[1:])
    return flattening.emit("unstack", [x], [aval] * length, unstack, equation)


def _stacked(
    flattening: Flattening, equation: JaxprEqn, parts: Sequence[Any], aval: Any
) -> Any:
    def stack(*values: Any) -> list[Any]:
        return [jnp.stack(values).astype(aval.dtype)]

    if not parts:
        return jnp.zeros(aval.shape, aval.dtype)
    one = aval.update(shape=aval.shape[1:])
    parts = [_like(v, one) for v in parts]
    return flattening.emit("stack", parts, [aval], stack, equation, {"axis": 0})[0]


def _like(value: Any, aval: Any) -> Any:
    """A constant in the dtype that a branch or a step returns it in."""
    if isinstance(value, Variable) or getattr(value, "dtype", None) == aval.dtype:
        return value
    return jnp.asarray(value, aval.dtype)
