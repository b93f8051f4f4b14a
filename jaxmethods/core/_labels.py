"""Which labelled inputs a value depends on, followed through nested bodies."""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn, Literal

from ._versions import as_body, call_body, scan_arity

Label = frozenset[Any]
NO_LABEL: Label = frozenset()


def output_labels(equation: JaxprEqn, labels: Sequence[Label]) -> list[Label]:
    """The labels of an equation's outputs, given those of its operands.

    Calls, scans and branches are followed output by output, so that a parameter that
    passes through a loop unchanged keeps its own label; anything else is the union.
    """
    name, params = equation.primitive.name, equation.params
    inner = call_body(equation)
    if inner is not None:
        return _body_labels(inner.jaxpr, labels)
    if name == "scan":
        num_consts, num_carry = scan_arity(equation)
        return _loop_labels(params["jaxpr"], labels, num_consts, num_carry)
    if name == "cond":
        branches = [_body_labels(b, labels[1:]) for b in params["branches"]]
        return [labels[0].union(*outs) for outs in zip(*branches, strict=True)]
    return [NO_LABEL.union(*labels)] * len(equation.outvars)


def _body_labels(jaxpr: Any, labels: Sequence[Label]) -> list[Label]:
    jaxpr = as_body(jaxpr).jaxpr
    env: dict[Any, Label] = dict(zip(jaxpr.invars, labels, strict=True))

    def read(var: Any) -> Label:
        return NO_LABEL if isinstance(var, Literal) else env.get(var, NO_LABEL)

    for equation in jaxpr.eqns:
        outs = output_labels(equation, [read(v) for v in equation.invars])
        env.update(zip(equation.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _loop_labels(
    jaxpr: Any, labels: Sequence[Label], num_consts: int, num_carry: int
) -> list[Label]:
    """Repeats the body until the labels of the carried values grow no more."""
    consts, xs = labels[:num_consts], labels[num_consts + num_carry :]
    carry = list(labels[num_consts : num_consts + num_carry])
    while True:
        outs = _body_labels(jaxpr, [*consts, *carry, *xs])
        grown = [a | b for a, b in zip(carry, outs[:num_carry], strict=True)]
        if grown == carry:
            return carry + outs[num_carry:]
        carry = grown


def loop_input_labels(equation: JaxprEqn, labels: Sequence[Label]) -> list[Label]:
    """The labels of the inputs of a scan's body, at any of its iterations."""
    num_consts, num_carry = scan_arity(equation)
    outs = output_labels(equation, labels)
    carried = slice(num_consts, num_consts + num_carry)
    return [*labels[:num_consts], *outs[:num_carry], *labels[carried.stop :]]
