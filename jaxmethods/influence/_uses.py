"""Finds where a loss multiplies by a parameter: there its gradient has two factors.

A parameter that enters the loss through matrix products, convolutions and look-ups
alone never needs its gradient in full, wherever they sit: under `jit` and `remat`, in
the body of a `scan`, and whether they take the parameter itself or a view of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import JaxprEqn, Literal

from ..core import as_body, scan_arity, source_line
from ._blocks import Position, Use
from ._products import find_product
from ._views import View, enter_loop, reshape, see_through, view_of

# Calls without a derivative of their own: what happens inside happens outside.
INLINE = ("jit", "pjit", "remat2", "remat", "checkpoint")


@dataclass
class Uses:
    """How the parameters enter a loss.

    Attributes:
        products: For each parameter, the products it is a factor of.
        others: For each parameter, where it is used in any other way first.
    """

    products: dict[int, list[Use]] = field(default_factory=dict)
    others: dict[int, str] = field(default_factory=dict)

    def note(self, view: View, equation: JaxprEqn) -> None:
        """Notes that a view is used in a way that has no factors."""
        for piece in view:
            place = f"{equation.primitive.name} at {source_line(equation)}"
            self.others.setdefault(piece.leaf, place)


def find_uses(jaxpr: Any, leaves: Sequence[int]) -> Uses:
    """Says how some inputs of a jaxpr enter it.

    Args:
        jaxpr: An open jaxpr.
        leaves: The numbers of the inputs to follow.
    """
    uses = Uses()
    inputs = [
        view_of(i, var.aval.shape) if i in leaves and var.aval.size else None
        for i, var in enumerate(jaxpr.invars)
    ]
    for view in _walk(jaxpr, inputs, (), (), uses):
        for piece in view or ():
            uses.others.setdefault(piece.leaf, "the loss is the parameter itself")
    return uses


def _walk(
    jaxpr: Any,
    inputs: Sequence[View | None],
    position: Position,
    lengths: tuple[int, ...],
    uses: Uses,
) -> list[View | None]:
    views = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(var: Any) -> View | None:
        return None if isinstance(var, Literal) else views.get(var)

    for number in _needed(jaxpr):
        equation = jaxpr.eqns[number]
        operands = [read(v) for v in equation.invars]
        if not any(operands):
            continue
        here = (*position, number)
        if equation.primitive.name in INLINE:
            body = as_body(equation.params["jaxpr"]).jaxpr
            seen = _walk(body, operands, here, lengths, uses)
        elif equation.primitive.name == "scan":
            seen = _walk_loop(equation, operands, here, lengths, uses)
        else:
            seen = see_through(equation, operands)
            if seen is None:
                _record(equation, operands, here, lengths, uses)
                continue
        views.update(zip(equation.outvars, seen, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[int]:
    """The numbers of the equations that the outputs depend on, in order."""
    wanted, numbers = set(map(id, jaxpr.outvars)), []
    for number, equation in reversed([*enumerate(jaxpr.eqns)]):
        if wanted.intersection(map(id, equation.outvars)):
            wanted.update(map(id, equation.invars))
            numbers.append(number)
    return numbers[::-1]


def _walk_loop(
    equation: JaxprEqn,
    operands: Sequence[View | None],
    here: Position,
    lengths: tuple[int, ...],
    uses: Uses,
) -> list[None]:
    """Follows what a `scan` reads in each round, or takes apart."""
    (num_consts, num_carry), length = scan_arity(equation), equation.params["length"]
    inputs: list[View | None] = []
    for number, view in enumerate(operands):
        carried = num_consts <= number < num_consts + num_carry
        seen = None
        if view is not None and not carried:
            seen = enter_loop(view, length, apart=number >= num_consts)
        if view is not None and seen is None:
            uses.note(view, equation)
        inputs.append(seen)
    body = as_body(equation.params["jaxpr"]).jaxpr
    for view in _walk(body, inputs, here, (*lengths, length), uses):
        uses.note(view or (), equation)
    return [None] * len(equation.outvars)


def _record(
    equation: JaxprEqn,
    operands: Sequence[View | None],
    here: Position,
    lengths: tuple[int, ...],
    uses: Uses,
) -> None:
    """Notes a product, or another use, of each parameter among the operands."""
    seen = [(i, view) for i, view in enumerate(operands) if view is not None]
    ((weight, view), *more) = seen
    product = None if more else find_product(equation, weight)
    if product is not None:
        before: Any = equation.invars[weight].aval
        view = reshape(view, before.shape, product.shape)
    if product is None or view is None or 0 in lengths:
        for _, view in seen:
            uses.note(view, equation)
        return
    for piece in view:
        use = Use(here, equation, weight, product, piece, lengths)
        uses.products.setdefault(piece.leaf, []).append(use)
