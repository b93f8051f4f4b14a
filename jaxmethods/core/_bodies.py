"""Binds a nested body again, rewritten, as what it was: a call, a loop, a branch.

Each takes `(equation, values, labels, scope, run)`, where `run(body, args, labels,
scope)` evaluates a body under the rules, and returns the outputs of the equation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import JaxprEqn

from ._labels import Label, loop_input_labels
from ._versions import ANNOTATED, JIT, REMAT, as_body, bind, call_body, scan_arity

Run = Callable[..., list[Any]]

_TANGENT = object()  # the label of the tangents in a derivative of the user's own


def _jit(
    equation: JaxprEqn, values: list[Any], labels: Sequence[Label], scope: Any, run: Run
) -> list[Any]:
    params = equation.params

    def body(*args: Any) -> list[Any]:
        return run(call_body(equation), args, labels, scope)

    body.__name__ = body.__qualname__ = params["name"]
    shardings: dict[str, Any] = {}
    for side, kept in (("in_shardings", tuple), ("out_shardings", list)):
        given = params.get(side, ())
        if any(isinstance(s, jax.sharding.Sharding) for s in given):
            known = (s if isinstance(s, jax.sharding.Sharding) else None for s in given)
            shardings[side] = kept(known)
    options = {"keep_unused": params["keep_unused"], "inline": params["inline"]}
    return jax.jit(body, **options, **shardings)(*values)


def _remat(
    equation: JaxprEqn, values: list[Any], labels: Sequence[Label], scope: Any, run: Run
) -> list[Any]:
    params = equation.params
    return jax.checkpoint(
        lambda *args: run(call_body(equation), args, labels, scope),
        prevent_cse=params["prevent_cse"],
        policy=params["policy"],
    )(*values)


def _scan(
    equation: JaxprEqn, values: list[Any], labels: Sequence[Label], scope: Any, run: Run
) -> list[Any]:
    params = equation.params
    num_consts, num_carry = scan_arity(equation)
    consts, rest = values[:num_consts], values[num_consts:]
    inside = loop_input_labels(equation, labels)

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        counter, state = carry
        args = [*consts, *state, *x]
        looped = scope.iteration(counter)
        outs = run(as_body(params["jaxpr"]), args, inside, looped)
        return (counter + 1, outs[:num_carry]), outs[num_carry:]

    (_, carry), ys = jax.lax.scan(
        step,
        (jnp.int32(0), rest[:num_carry]),
        rest[num_carry:],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys]


def _while(
    equation: JaxprEqn, values: list[Any], labels: Sequence[Label], scope: Any, run: Run
) -> list[Any]:
    params = equation.params
    split, end = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = values[:split], values[split : split + end]
    # What a loop carries may come to depend on all that enters it.
    anything = frozenset().union(*labels)

    def test(carry: Any) -> Any:
        args = [*cond_consts, *carry[1]]
        marks = [anything] * len(args)
        body = as_body(params["cond_jaxpr"])
        return run(body, args, marks, scope.inside(0).iteration(carry[0]))[0]

    def step(carry: Any) -> Any:
        args = [*body_consts, *carry[1]]
        marks = [*labels[split : split + end]] + [anything] * len(carry[1])
        body = as_body(params["body_jaxpr"])
        outs = run(body, args, marks, scope.inside(1).iteration(carry[0]))
        return carry[0] + 1, outs

    start = (jnp.int32(0), values[split + end :])
    return list(jax.lax.while_loop(test, step, start)[1])


def _cond(
    equation: JaxprEqn, values: list[Any], labels: Sequence[Label], scope: Any, run: Run
) -> list[Any]:
    def branch(number: int, jaxpr: Any) -> Callable[..., list[Any]]:
        inside = scope.inside(number)
        return lambda *args: run(as_body(jaxpr), args, labels[1:], inside)

    branches = [branch(i, b) for i, b in enumerate(equation.params["branches"])]
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return list(jax.lax.switch(values[0], branches, *values[1:]))
    # Each platform lowers its own branch alone: others may hold what it does not know.
    named = zip(platforms, branches, strict=True)
    chosen = {name: b for names, b in named for name in names or ("default",)}
    return list(jax.lax.platform_dependent(*values[1:], **chosen))


def _dissolve(
    equation: JaxprEqn, values: list[Any], labels: Sequence[Label], scope: Any, run: Run
) -> list[Any]:
    """What is known of a function does not hold of the function rewritten."""
    return run(call_body(equation), values, labels, scope)


def _custom_jvp(
    equation: JaxprEqn, values: list[Any], labels: Sequence[Label], scope: Any, run: Run
) -> list[Any]:
    """The value rewritten, the derivative the user's own rule.

    The rule stays linear in the tangents: rewritten is what it computes without them,
    among it the value of the function, which it may use.
    """
    inside = scope.own_derivative(lambda rule: rule)
    beside_tangents = scope.own_derivative(_sparing_tangents)

    @jax.custom_jvp
    def call(*args: Any) -> list[Any]:
        return run(call_body(equation), args, labels, inside)

    def derivative(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        moved = [not isinstance(t, SymbolicZero) for t in tangents]
        along = [t for t, m in zip(tangents, moved, strict=True) if m]

        def users(primals: Any, along: Any) -> Any:
            def of_moved(*some: Any) -> list[Any]:
                given = iter(some)
                pairs = zip(primals, moved, strict=True)
                return bind(equation, *(next(given) if m else p for p, m in pairs))

            at = [p for p, m in zip(primals, moved, strict=True) if m]
            return jax.jvp(of_moved, at, along)

        rule = jax.make_jaxpr(users)([*primals], along)
        marks = [*labels, *[frozenset({_TANGENT})] * len(along)]
        outs = run(as_body(rule), [*primals, *along], marks, beside_tangents)
        return outs[: len(outs) // 2], outs[len(outs) // 2 :]

    call.defjvp(derivative, symbolic_zeros=True)
    return call(*values)


def _sparing_tangents(rule: Callable[..., Any]) -> Callable[..., Any]:
    def sparing(site: Any, *operands: Any) -> Any:
        if any(_TANGENT in label for label in site.labels):
            return NotImplemented
        return rule(site, *operands)

    return sparing


REBUILD: dict[str, Callable[..., list[Any]]] = {
    **dict.fromkeys(JIT, _jit),
    **dict.fromkeys(REMAT, _remat),
    ANNOTATED: _dissolve,
    "custom_jvp_call": _custom_jvp,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
