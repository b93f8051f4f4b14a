"""Where jax versions differ: the one place that reads jax's unstable face.

Everything else in the package uses documented names only. Supported: jax 0.10 to 0.12.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from jax._src import source_info_util
from jax.extend.core import JaxprEqn

from ._varying import vary_together, varying_axes

JIT = frozenset({"jit", "pjit"})
REMAT = frozenset({"remat2", "remat", "checkpoint"})
ANNOTATED = "annotated_call"
PLAIN_CALL = frozenset({"closed_call", "core_call", ANNOTATED})
CUSTOM_CALL = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


class Frame(NamedTuple):
    """A line of Python: where an equation came from."""

    file: str
    line: int
    function: str


class Body(NamedTuple):
    """A jaxpr and the values of its constants, whichever class holds them."""

    jaxpr: Any
    consts: tuple[Any, ...]


def as_body(jaxpr: Any) -> Body:
    """Opens a closed jaxpr; an open one (shard_map, remat) has no constants."""
    return Body(getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ())))


def call_body(equation: JaxprEqn) -> Body | None:
    """The body of a call-like equation (jit, remat, custom rules), else None."""
    name = equation.primitive.name
    if name in JIT | REMAT or name in PLAIN_CALL | CUSTOM_CALL:
        params = equation.params
        keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
        return as_body(next(params[k] for k in keys if k in params))
    return None


def scan_arity(equation: JaxprEqn) -> tuple[int, int]:
    """The number of constants and of carried values of a `scan` equation."""
    params = equation.params
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def bind(equation: JaxprEqn, *values: Any) -> list[Any]:
    """Evaluates one equation as it stands, under its own line, names and context."""
    info = equation.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    params = equation.primitive.get_bind_params(equation.params)
    if equation.primitive.name == "pvary":
        axes = tuple(a for a in params["axes"] if a not in varying_axes(*values))
        if not axes:
            return list(values)
        params = {**params, "axes": axes}
    elif "jaxpr" not in params:
        # jax makes operands vary alike where it traces a function. What is traced with
        # one that does not vary may be evaluated with one that does.
        values = vary_together(values)
    with (
        source_info_util.user_context(info.traceback, name_stack=stack),
        equation.ctx.manager,
    ):
        out = equation.primitive.bind(*values, **params)
    return list(out) if equation.primitive.multiple_results else [out]


def placed(equation: JaxprEqn, caller: JaxprEqn | None) -> JaxprEqn:
    """The equation under the line of its caller, where it has none of its own.

    jax traces its own functions without the lines of those who call them.
    """
    if caller is None or next(frames(equation), None) is not None:
        return equation
    trail = caller.source_info.traceback
    return equation.replace(source_info=equation.source_info.replace(traceback=trail))


def frames(equation: JaxprEqn) -> Iterator[Frame]:
    """The lines of Python that led to an equation, innermost first, without jax's."""
    for frame in source_info_util.user_frames(equation.source_info.traceback):
        yield Frame(frame.file_name, frame.start_line, frame.function_name)
