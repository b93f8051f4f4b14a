"""Runs a function as one program: detached from gradients, compiled once.

An attack takes a closure over the model, and a closure is a new function at every
call. `jax.jit` would compile each of them again (0.3 s for a small network); caching
by the identity of the closure would use weights of yesterday where it reads them from
outside. Here the function is traced at every call (some 10 ms) and the *trace* is the
cache's key: arrays it closes over become arguments, so a program is compiled again
only where its operations, shapes or constants differ.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core as jex

from ..core import with_fast_convolutions

# How a custom derivative is taken does not matter to a program that has none.
DERIVATIVE_RULES = {"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees"}


def run_detached(fn: Callable, *args: Any) -> Any:
    """Evaluates `fn(*args)` as one compiled program that no gradient passes.

    Called eagerly it compiles at the first call of each distinct program and costs a
    trace afterwards; inside `jit`, `vmap` or `shard_map` it is part of that program.

    Args:
      fn: A function of arrays; values that it closes over may be traced.
      *args: Pytrees of arrays.

    Returns:
      What `fn` returns; its derivative in the arguments and the closed-over values
      is zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmethods.robust.programs import run_detached
      >>> scaled = lambda scale: run_detached(lambda x: scale * x, jnp.arange(3.0))
      >>> scaled(2.0)
      Array([0., 2., 4.], dtype=float32)
      >>> jax.grad(lambda scale: scaled(scale).sum())(2.0)
      Array(0., dtype=float32, weak_type=True)
    """
    # A new function each time: jax remembers the traces of those that it has seen.
    trace = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
    closed, shape = trace(*args)
    operands = lax.stop_gradient((closed.consts, jax.tree.leaves(args)))
    program = Program(signature(closed.jaxpr), closed.jaxpr)
    return jax.tree.unflatten(jax.tree.structure(shape), _compiled(program)(*operands))


@dataclasses.dataclass(frozen=True)
class Program:
    """A jaxpr that equals every other one with the same signature."""

    signature: Hashable
    jaxpr: jex.Jaxpr = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=128)
def _compiled(program: Program) -> Callable:
    def evaluate(consts, args):
        return jex.jaxpr_as_fun(jex.ClosedJaxpr(program.jaxpr, consts))(*args)

    return jax.jit(with_fast_convolutions(evaluate))


def signature(jaxpr: jex.Jaxpr) -> Hashable:
    """A value that two jaxprs share where they compute the same in the same way.

    Variables are numbered in order of appearance; constants inside count by value,
    functions and arrays in parameters by identity.

    Args:
      jaxpr: Any jaxpr.

    Returns:
      Nested tuples, to compare and to hash.

    Example:
      >>> import jax
      >>> from jaxmethods.robust.programs import signature
      >>> sign = lambda fn: signature(jax.make_jaxpr(fn)(1.0).jaxpr)
      >>> sign(lambda x: 2 * x) == sign(lambda y: 2 * y)
      True
      >>> sign(lambda x: 2 * x) == sign(lambda x: 3 * x)
      False
    """
    numbers: dict[jex.Var, int] = {}

    def atom(value):
        if isinstance(value, jex.Literal):
            return value.aval, _frozen(np.asarray(value.val))
        return value.aval, numbers.setdefault(value, len(numbers))

    def equation(eqn):
        params = sorted(eqn.params.items())
        return (
            eqn.primitive,
            tuple(map(atom, eqn.invars)),
            tuple(map(atom, eqn.outvars)),
            tuple((k, _frozen(v)) for k, v in params if k not in DERIVATIVE_RULES),
        )

    inputs = tuple(map(atom, (*jaxpr.constvars, *jaxpr.invars)))
    return inputs, tuple(map(equation, jaxpr.eqns)), tuple(map(atom, jaxpr.outvars))


def _frozen(value: Any) -> Hashable:
    """A hashable stand-in for the parameter of an equation."""
    if isinstance(value, jex.Jaxpr):
        return signature(value)
    if isinstance(value, jex.ClosedJaxpr):
        return signature(value.jaxpr), tuple(map(_frozen, value.consts))
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, float | np.ndarray | np.generic):
        # By bits: -0.0 is not 0.0 and NaN is NaN.
        value = np.asarray(value)
        return value.dtype, value.shape, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


class _Same:
    """Equal to itself only; keeps the value alive, so that its id stays its own."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
