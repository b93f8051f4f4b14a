"""Rewrites a jaxpr while it runs: rules replace equations, bodies stay what they were.

A nested `jit`, `remat`, `scan`, `while` or `cond` whose body holds an equation that a
rule takes is rewritten and bound again as what it was; any other equation is bound as
it stands, so a rule set that touches nothing changes no bit of values or derivatives.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Literal, jaxprs_in_params

from ._bodies import REBUILD
from ._labels import NO_LABEL, Label, output_labels
from ._source import source_line
from ._versions import CUSTOM_CALL, Body, as_body, bind, call_body

Rule = Callable[..., Any]


@dataclass(frozen=True)
class Site:
    """Where a rule is applied.

    Attributes:
        equation: The equation that is replaced.
        position: Its place in the nested bodies: a tuple of ints, unique in a function.
        iterations: The counter of each loop around it, traced int32, outermost first.
        labels: For each operand, the labels of the inputs that it depends on.
    """

    equation: JaxprEqn
    position: tuple[int, ...]
    iterations: tuple[jax.Array, ...]
    labels: tuple[Label, ...]

    def bind(self, *values: Any) -> list[Any]:
        """Evaluates the equation as it stands."""
        return bind(self.equation, *values)


@dataclass(frozen=True)
class _Scope:
    rules: Mapping[str, Rule]
    inline: Collection[str]
    report: Callable[[str], None] | None
    through: Mapping[str, Rule] | None
    position: tuple[int, ...] = ()
    iterations: tuple[Any, ...] = ()

    def inside(self, *where: int) -> "_Scope":
        return replace(self, position=self.position + where)

    def iteration(self, counter: Any) -> "_Scope":
        return replace(self, iterations=(*self.iterations, counter))

    def own_derivative(self, change: Callable[[Rule], Rule]) -> "_Scope":
        """The scope of a `custom_jvp`: its derivative outlives the loops around it."""
        rules = {name: change(rule) for name, rule in (self.through or {}).items()}
        return replace(self, rules=rules, through=rules, iterations=())


def interpret(
    closed_jaxpr: Any,
    rules: Mapping[str, Rule],
    args: Sequence[Any],
    *,
    labels: Sequence[Collection[Any]] | None = None,
    inline: Collection[str] = (),
    report: Callable[[str], None] | None = None,
    through: Mapping[str, Rule] | None = None,
) -> list[Any]:
    """Evaluates a jaxpr with some of its equations replaced.

    Args:
        closed_jaxpr: From `jax.make_jaxpr`.
        rules: `rules[primitive_name](site, *operands)` returns the list of outputs, or
            NotImplemented to keep the equation.
        args: One value an input of the jaxpr.
        labels: For each input, what its values are called; a `Site` then says which
            labels each operand depends on. None: no labels.
        inline: Names of call primitives to dissolve (`"jit"`, `"remat2"`).
        report: Called with a sentence for each equation that a rule would take but
            that sits where it cannot be replaced (a custom derivative, a kernel).
        through: The rules inside a `custom_jvp`, whose derivative stays the user's; for
            the primitives of `rules`, without traced values of their own: they run
            again where the result is differentiated. None: such bodies stay whole.

    Returns:
        The outputs of the jaxpr, flat.

    Example:
        >>> import jax.numpy as jnp
        >>> jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x) + x)(1.0)
        >>> rules = {"sin": lambda site, x: [jnp.cos(x)]}
        >>> float(interpret(jaxpr, rules, [0.0])[0])
        1.0
    """
    marks = [NO_LABEL] * len(args) if labels is None else [*map(frozenset, labels)]
    scope = _Scope(rules, inline, report, through)
    return _run(as_body(closed_jaxpr), args, marks, scope)


def _run(
    body: Body, args: Sequence[Any], labels: Sequence[Label], scope: _Scope
) -> list[Any]:
    jaxpr, consts = body
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    names: dict[Any, Label] = dict(zip(jaxpr.invars, labels, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else env[var]

    for number, equation in enumerate(jaxpr.eqns):
        values = [read(v) for v in equation.invars]
        marks = tuple(
            NO_LABEL if isinstance(v, Literal) else names.get(v, NO_LABEL)
            for v in equation.invars
        )
        outs = _step(equation, values, marks, scope.inside(number))
        env.update(zip(equation.outvars, outs, strict=True))
        names.update(zip(equation.outvars, output_labels(equation, marks), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _step(
    equation: JaxprEqn, values: list[Any], marks: tuple[Label, ...], scope: _Scope
) -> list[Any]:
    name = equation.primitive.name
    rule = scope.rules.get(name)
    if rule is not None:
        site = Site(equation, scope.position, scope.iterations, marks)
        outs = rule(site, *values)
        return bind(equation, *values) if outs is NotImplemented else list(outs)
    inner = call_body(equation)
    if inner is not None and name in scope.inline:
        return _run(inner, values, marks, scope)
    found = _inside(equation, scope.rules)
    if not found:
        return bind(equation, *values)
    if name in REBUILD and (name not in CUSTOM_CALL or scope.through is not None):
        return REBUILD[name](equation, values, marks, scope, _run)
    if scope.report is not None:
        kind = "custom derivative" if name in CUSTOM_CALL else f"primitive {name!r}"
        scope.report(
            f"{', '.join(sorted(found))} inside a {kind} at {source_line(equation)} "
            "is left as it is"
        )
    return bind(equation, *values)


def occurring(jaxpr: Any, names: Collection[str]) -> set[str]:
    """The primitives of some names that occur in a jaxpr, nested ones included.

    Example:
        >>> import jax.numpy as jnp
        >>> jaxpr = jax.make_jaxpr(jax.jit(lambda x: jnp.sin(x) + 1))(1.0)
        >>> occurring(jaxpr, ("sin", "cos"))
        {'sin'}
    """
    found: set[str] = set()
    for equation in as_body(jaxpr).jaxpr.eqns:
        found |= {equation.primitive.name}.intersection(names)
        found |= _inside(equation, names)
    return found


def _inside(equation: JaxprEqn, names: Collection[str]) -> set[str]:
    bodies = jaxprs_in_params(equation.params)
    return set().union(*(occurring(body, names) for body in bodies))
