"""Says where in the user's code an equation came from, for error messages."""

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from jax.extend.core import JaxprEqn

from ._versions import Frame, frames

_PACKAGE = str(Path(__file__).resolve().parent.parent)
# What is built out of them, such as the tour, is a user of theirs.
_TRANSFORMS = ("core", "kernels", "sketch", "quantize", "bound", "influence", "shard")
_MACHINERY = tuple(f"{_PACKAGE}/{name}/" for name in _TRANSFORMS)
_PYTHON = sysconfig.get_path("stdlib")


def _is_library(frame: Frame) -> bool:
    return "site-packages" in frame.file or frame.file.startswith((_PACKAGE, _PYTHON))


def _callers() -> Iterator[Frame]:
    """The lines of Python that are being executed, innermost first."""
    for frame, line in traceback.walk_stack(None):
        yield Frame(frame.f_code.co_filename, line, frame.f_code.co_qualname)


def source_line(equation: JaxprEqn) -> str:
    """The user's file, line and function that made `equation`.

    The innermost line outside installed packages: for a flax layer that is the line
    of the model, not the line of flax. Where there is none, the innermost line of
    another package. A function of jax itself, handed over as it is, has no line at all:
    then it is the line that is being executed.

    Returns:
        Text such as `model.py:12 (forward)`, or `an unknown line`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x))(1.0)
        >>> source_line(jaxpr.eqns[0]).split(":")[1]
        '1 (<lambda>)'
    """
    trail = [f for f in frames(equation) if not f.file.startswith(_MACHINERY)]
    mine = [frame for frame in trail if not _is_library(frame)]
    callers = [] if trail else [f for f in _callers() if not _is_library(f)]
    found = [*mine, *trail, *callers]
    if not found:
        return "an unknown line"
    frame = found[0]
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
