"""Per-example gradients of a loss, in factors where a parameter only multiplies."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from ..core import describe, interpret, vary_together
from ._blocks import Block, Position, blocks_of
from ._contract import Factors, Gradients, Lookups, Rows
from ._taps import FASTER, Operands, evaluate
from ._uses import INLINE, find_uses


@dataclass(frozen=True)
class Recipe:
    """How to take the gradients of a loss on examples of one shape.

    A parameter whose gradient falls into disjoint blocks (the gates of a fused kernel
    that is sliced before it multiplies) has a gradient for each: the first under the
    number of the parameter, others under numbers that no parameter has.

    Attributes:
        jaxpr: The loss of one example, on the leaves of its arguments.
        factored: For each gradient that has factors, the block it fills.
        whole: The other parameters that the loss uses, each with the place of the use
            that has no factors.
    """

    jaxpr: Any
    factored: Mapping[int, Block]
    whole: Mapping[int, str]

    def evaluate(
        self,
        leaves: Sequence[Any],
        example: Any,
        rules: Mapping[str, Any] | None = None,
    ) -> Any:
        """The loss of one example, under further rules for `core.interpret`."""
        args = [*leaves, *jax.tree.leaves(example)]
        rules = FASTER | dict(rules or {})
        return interpret(self.jaxpr, rules, args, inline=INLINE)[0]

    def rows(self, number: int) -> Rows:
        """How many outer products a factored gradient is the sum of."""
        return self.factored[number].rows

    def widths(self, number: int) -> tuple[int, int]:
        """The numbers of columns of a factored gradient's two factors."""
        return self.factored[number].widths

    def blocks(self, leaf: int) -> dict[int, Block]:
        """The blocks of a parameter, by number; none where it is taken whole."""
        return {i: block for i, block in self.factored.items() if block.leaf == leaf}


def read_loss(
    loss: Callable[..., Any], params: Any, example: Any, chosen: Sequence[int]
) -> Recipe:
    """Traces a loss at one example and finds the factors of its gradients.

    Args:
        loss: `loss(params, example) -> scalar`.
        params: A pytree of shapes and dtypes.
        example: A pytree of shapes and dtypes.
        chosen: The numbers of the parameters whose gradients are wanted.

    Raises:
        ValueError: The loss is no floating scalar.
    """
    jaxpr, out = jax.make_jaxpr(loss, return_shape=True)(params, example)
    check_scalar(out, "loss(params, example)")
    uses, count = find_uses(jaxpr.jaxpr, chosen), len(jax.tree.leaves(params))
    factored = {}
    for leaf, products in uses.products.items():
        size = jaxpr.in_avals[leaf].size
        blocks = [] if leaf in uses.others else blocks_of(leaf, products, size)
        factored |= {leaf + i * count: block for i, block in enumerate(blocks)}
    tangled = "its products pair its axes in different ways"
    whole = dict.fromkeys(uses.products, tangled) | uses.others
    whole = {leaf: why for leaf, why in whole.items() if leaf not in factored}
    return Recipe(jaxpr, factored, whole)


def check_scalar(out: Any, call: str) -> None:
    """Raises ValueError unless a loss returns one floating scalar.

    Args:
        out: The shape and dtype of what it returns.
        call: How it is called.
    """
    scalar = jax.tree.structure(out).num_leaves == 1 and hasattr(out, "shape")
    if not scalar or out.shape or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"the loss of one example is {jax.tree.map(describe, out)}; wanted one "
            f"floating scalar: {call} sees an example without the leading axis and "
            "returns its own loss."
        )


def alike(a: Recipe, b: Recipe) -> tuple[Recipe, Recipe]:
    """Takes whole what two recipes of one loss factor in different ways.

    They may where the shape of an example decides how a parameter is used.
    """
    if a is b:
        return a, b
    leaves = {block.leaf for r in (a, b) for block in r.factored.values()}

    def forms(recipe: Recipe, leaf: int) -> list[Any]:
        blocks = recipe.blocks(leaf).values()
        return [(block.region, block.rows.look_ups > 0) for block in blocks]

    lost = {leaf for leaf in leaves if forms(a, leaf) != forms(b, leaf)}

    def restrict(recipe: Recipe) -> Recipe:
        blocks = recipe.factored.items()
        kept = {i: block for i, block in blocks if block.leaf not in lost}
        used = {block.leaf for _, block in blocks} & lost
        why = dict.fromkeys(used, "its products differ between train and test")
        return replace(recipe, factored=kept, whole={**recipe.whole, **why})

    return restrict(a), restrict(b)


def per_example(
    recipe: Recipe, params: Any, examples: Any, stay: Collection[int]
) -> dict[int, Gradients]:
    """The gradient of each example's loss with respect to each parameter it uses.

    Args:
        recipe: Of the loss on such examples.
        params: The parameters.
        examples: A pytree with a leading axis of examples.
        stay: The numbers of the gradients that stay factored.

    Returns:
        For each parameter, or each block of one, `Factors` or an array, with a leading
        axis of examples; arrays of both of two recipes that are `alike` have the same
        order.
    """
    leaves = jax.tree.leaves(params)
    gradients = jax.vmap(lambda example: _of_one(recipe, leaves, example))(examples)
    return {
        number: g.in_long_rows() if isinstance(g, Factors) and number not in stay else g
        for number, g in gradients.items()
    }


def _of_one(
    recipe: Recipe, leaves: Sequence[Any], example: Any
) -> dict[int, Gradients]:
    """The gradients for one example: one backward pass, to taps and to parameters."""
    blocks = recipe.factored.values()
    uses = {use.position: use for block in blocks for use, _ in block.uses}

    def run(whole: dict[int, Any], taps: Any) -> tuple[Any, Operands]:
        merged = [whole.get(i, leaf) for i, leaf in enumerate(leaves)]
        args = [*merged, *jax.tree.leaves(example)]
        (loss,), seen = evaluate(recipe.jaxpr, args, taps, uses)
        return loss, seen

    taps = {position: use.tap for position, use in uses.items()}
    # Where the examples differ between devices the taps must, or their gradients
    # would be summed over the devices.
    taps, _ = vary_together((taps, example))
    whole = {leaf: leaves[leaf] for leaf in recipe.whole}
    (found, outs), seen = jax.grad(run, argnums=(0, 1), has_aux=True)(whole, taps)
    return found | {i: _join(b, seen, outs) for i, b in recipe.factored.items()}


def _join(block: Block, seen: Operands, outs: Mapping[Position, jax.Array]) -> Factors:
    """The factors of all products of a block, one below the other."""
    numbers, others, right = [], [], []
    for use, flip in block.uses:  # Look-ups come first.
        position = use.position
        a, g = use.factors(seen[position], outs[position])[:: -1 if flip else 1]
        (numbers if use.product.looks_up else others).append(a)
        right.append(g)
    left = jnp.concatenate(others, -2) if others else None
    if numbers or left is None:
        left = Lookups(jnp.concatenate(numbers, -1), left, block.widths[0])
    return Factors(left, jnp.concatenate(right, -2))
