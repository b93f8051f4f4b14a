"""Says where in the user's code an equation came from, for error messages."""

from pathlib import Path

from jax.extend.core import JaxprEqn

from ._versions import Frame, frames

_PACKAGE = str(Path(__file__).resolve().parent.parent)


def _is_library(frame: Frame) -> bool:
    return "site-packages" in frame.file or frame.file.startswith(_PACKAGE)


def source_line(equation: JaxprEqn) -> str:
    """The user's file, line and function that made `equation`.

    The innermost line outside installed packages: for a flax layer that is the line
    of the model, not the line of flax. Where there is none, the innermost line.

    Returns:
        Text such as `model.py:12 (forward)`, or `an unknown line`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x))(1.0)
        >>> source_line(jaxpr.eqns[0]).split(":")[1]
        '1 (<lambda>)'
    """
    trail = list(frames(equation))
    mine = [frame for frame in trail if not _is_library(frame)]
    if not trail:
        return "an unknown line"
    frame = (mine or trail)[0]
    return f"{frame.file}:{frame.line} ({frame.function})"


def missing_rule(
    transform: str, equation: JaxprEqn, remedy: str
) -> NotImplementedError:
    """The error for a primitive that a transform cannot handle, ready to raise.

    Args:
        transform: What was asked for, such as `bound.crown`.
        equation: The equation that has no rule.
        remedy: What the user can do about it.
    """
    return NotImplementedError(
        f"{transform} has no rule for the primitive {equation.primitive.name!r}, "
        f"which {source_line(equation)} uses; {remedy}"
    )
