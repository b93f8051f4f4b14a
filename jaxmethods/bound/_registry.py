"""Rules for primitives that the package does not know, added by its users."""

from collections.abc import Callable
from typing import Any

_INTERVAL: dict[str, Callable[..., Any]] = {}
_RELAX: dict[str, Callable[..., Any]] = {}

_REMEDY = (
    "add one with jaxmethods.bound.register_rule({!r}, interval, relax), "
    "or keep it away from the sets."
)
_INVERSE = "where no set reaches the matrix, multiply by its jnp.linalg.inv, or "
_FIRST = {
    "bitcast_convert_type": "write jnp.copysign as jnp.where(y < 0, -jnp.abs(x), "
    "jnp.abs(x)) and jnp.ldexp as x * 2.0**n, or ",
    "custom_linear_solve": _INVERSE,
    "fft": "write it as a product with two real matrices, or ",
    "reduce_window": "write it as an operation on slices of its operand, or ",
    "scatter-mul": "multiply by an array of factors, x * jnp.ones_like(x).at[i].set(c)"
    ", or ",
    "shard_map": "bound the function inside it, jax.shard_map(jax.vmap(bound.ibp(fn)), "
    "...), or ",
    "triangular_solve": _INVERSE,
    "while": "a loop needs a number of steps that is known when it is traced: write it "
    "with jax.lax.scan, or with jax.lax.fori_loop between Python ints, or ",
}


def remedy(name: str) -> str:
    """What to do about a primitive without a rule."""
    return _FIRST.get(name, "") + _REMEDY.format(name)


def register_rule(
    name: str,
    interval: Callable[..., Any],
    relax: Callable[..., Any] | None = None,
) -> None:
    """Tells every bound transform how to bound a primitive.

    The rules hold for the whole process and take precedence over those of the package.

    Args:
        name: The name of the primitive, as the error about its missing rule gives it.
        interval: `interval(node, *operands)` returns the `Bounds` of the output, or a
            list with one an output. An operand is `Bounds` where a set reaches it, an
            array where none does; `node.params` are the primitive's parameters,
            `node.evaluate(*arrays)` its list of outputs.
        relax: `relax(node, *operands)` returns `Lines` (elementwise functions of one
            variable) or `Planes` between which the output lies. None: the constant
            ends of the interval, which is sound for any function.

    Raises:
        TypeError: `name` is no string, or a rule is not callable.

    Example:
        A primitive that clips to [0, 1] can be bounded by its values at the ends:

        >>> from jaxmethods import bound
        >>> def interval(node, x):
        ...     return bound.Bounds(*(node.evaluate(end)[0] for end in x))
        >>> bound.register_rule("my_clip", interval)
    """
    if not isinstance(name, str):
        raise TypeError(
            f"name is a {type(name).__name__}; wanted the primitive's name, a string."
        )
    for what, rule in (("interval", interval), ("relax", relax)):
        if not callable(rule) and not (rule is None and what == "relax"):
            raise TypeError(
                f"{what} of the rule for {name!r} is a {type(rule).__name__}; "
                f"wanted a function {what}(node, *operands)."
            )
    _INTERVAL[name] = interval
    _RELAX.pop(name, None)
    if relax is not None:
        _RELAX[name] = relax


def registered_interval(name: str) -> Callable[..., Any] | None:
    """The user's interval rule for a primitive, if there is one."""
    return _INTERVAL.get(name)


def registered_relaxation(name: str) -> Callable[..., Any] | None:
    """The user's linear relaxation of a primitive, if there is one."""
    return _RELAX.get(name)
