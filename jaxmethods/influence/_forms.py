"""Says for each parameter in which form its gradients are taken, and why."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..core import leaf_paths, source_line
from ._blocks import Block
from ._checkpoints import check_arrays
from ._gradients import read_loss
from ._task import Loss, Where, choose_parameters


class Form(NamedTuple):
    """The form of a parameter's per-example gradient.

    Attributes:
        kind: "factors" where it is a sum of outer products that need not be formed,
            "whole" where it is computed entry by entry, "unused" where it is zero.
        place: The products and look-ups, or the first use that has no factors:
            primitive and line.
    """

    kind: str
    place: str


def forms(loss: Loss, *, where: Where = None) -> Callable[..., dict[Any, Form]]:
    """Says in which form `tracin` takes the gradients of each parameter.

    The scores are exact in either form. A parameter has factors where all that it
    enters are matrix products, convolutions and look-ups along one axis, also inside
    `jit`, `remat` and `scan`, and also transposed, reshaped, sliced or joined with
    others. Whether factors are then multiplied or the gradient is formed from them is a
    matter of their sizes.

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.
        where: Which parameters count, as for `tracin`.

    Returns:
        `report(params, example) -> {path: Form}`: params of one checkpoint, one
        example, or their shapes and dtypes; nothing is computed.

    Raises:
        ValueError, TypeError: As `tracin`.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, x: jnp.sum(x @ params["w"] + params["b"])
        >>> params = {"b": jnp.ones(2), "w": jnp.ones((3, 2))}
        >>> report = forms(loss)(params, jnp.ones(3))
        >>> report["b",].kind, report["w",].kind
        ('whole', 'factors')
    """

    def report(params: Any, example: Any) -> dict[Any, Form]:
        check_arrays(params)
        chosen = choose_parameters(where, params)
        recipe = read_loss(loss, params, example, chosen)
        paths = leaf_paths(params)
        found = {}
        for leaf in chosen:
            if blocks := recipe.blocks(leaf):
                found[paths[leaf]] = Form("factors", _places(blocks.values()))
            elif leaf in recipe.whole:
                found[paths[leaf]] = Form("whole", recipe.whole[leaf])
            else:
                found[paths[leaf]] = Form("unused", "the loss does not depend on it")
        return found

    return report


def _places(blocks: Iterable[Block]) -> str:
    """Where the products are, each once: one may take several pieces."""
    uses = {use.position: use.equation for block in blocks for use, _ in block.uses}
    return ", ".join(
        f"{equation.primitive.name} at {source_line(equation)}"
        for _, equation in sorted(uses.items())
    )
