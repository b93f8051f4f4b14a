"""How many workers a mapped axis has, or an error that says where to call."""

from typing import Any

import jax


def axis_size(axis_name: Any, caller: str) -> int:
    """The size of a mapped axis, or of several together.

    Args:
        axis_name: The axis, or a tuple of axes.
        caller: The function that wants it bound, for the error.

    Raises:
        NameError: The axis is not bound; the message names what binds it.

    Example:
        >>> axis_size("rows", "apply_sharded")
        Traceback (most recent call last):
        NameError: the axis 'rows' is not bound here; call apply_sharded inside ...
    """
    try:
        return jax.lax.axis_size(axis_name)
    except NameError as error:
        raise NameError(
            f"the axis {axis_name!r} is not bound here; call {caller} inside "
            f"shard_map, pmap or vmap(axis_name={axis_name!r})."
        ) from error
