"""Per-example gradients of a loss, in factors where a parameter only multiplies."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from ..core import describe, interpret, vary_together
from ._contract import Factors, Gradients
from ._pooling import max_pool
from ._products import INLINE, Product, find_uses


@dataclass(frozen=True)
class Recipe:
    """How to take the gradients of a loss on examples of one shape.

    Attributes:
        jaxpr: The loss of one example, on the leaves of its arguments.
        factored: For each parameter with factors, its products and whether each is
            flipped.
        whole: The other parameters that the loss uses, each with the place of the use
            that has no factors.
    """

    jaxpr: Any
    factored: Mapping[int, list[tuple[Product, bool]]]
    whole: Mapping[int, str]

    def evaluate(
        self,
        leaves: Sequence[Any],
        example: Any,
        rules: Mapping[str, Any] | None = None,
    ) -> Any:
        """The loss of one example, under further rules for `core.interpret`."""
        args = [*leaves, *jax.tree.leaves(example)]
        rules = {"reduce_window_max": max_pool, **(rules or {})}
        return interpret(self.jaxpr, rules, args, inline=INLINE)[0]

    def rows(self, leaf: int) -> int:
        """The number of outer products in a factored parameter's gradient."""
        return sum(product.rows for product, _ in self.factored[leaf])

    def widths(self, leaf: int) -> tuple[int, int]:
        """The numbers of columns of a factored parameter's two factors."""
        return self.factored[leaf][0][0].widths


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
    scalar = jax.tree.structure(out).num_leaves == 1 and hasattr(out, "shape")
    if not scalar or out.shape or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"the loss of one example is {jax.tree.map(describe, out)}; wanted one "
            "floating scalar: loss(params, example) sees an example without the "
            "leading axis and returns its own loss."
        )
    uses = find_uses(jaxpr.jaxpr, chosen)
    factored = {leaf: uses.factored(leaf) for leaf in uses.products}
    factored = {leaf: found for leaf, found in factored.items() if found}
    tangled = "its products pair its axes in different ways"
    whole = dict.fromkeys(uses.products, tangled) | uses.others
    whole = {leaf: why for leaf, why in whole.items() if leaf not in factored}
    return Recipe(jaxpr, factored, whole)


def alike(a: Recipe, b: Recipe) -> tuple[Recipe, Recipe]:
    """Takes whole what two recipes of one loss factor in different ways.

    They may where the shape of an example decides how a parameter is used.
    """
    if a is b:
        return a, b
    sides = [
        {leaf: uses[0][0].sides for leaf, uses in r.factored.items()} for r in (a, b)
    ]
    same = {leaf for leaf, found in sides[0].items() if sides[1].get(leaf) == found}
    same = {leaf for leaf in same if None not in sides[0][leaf]}

    def restrict(recipe: Recipe) -> Recipe:
        kept = {leaf: v for leaf, v in recipe.factored.items() if leaf in same}
        lost = recipe.factored.keys() - same
        why = dict.fromkeys(lost, "its products differ between train and test")
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
        stay: The parameters whose gradients stay factored.

    Returns:
        For each parameter, `Factors` or an array, with a leading axis of examples.
    """
    leaves = jax.tree.leaves(params)
    gradients = jax.vmap(lambda example: _of_one(recipe, leaves, example))(examples)
    return {
        leaf: g.whole() if isinstance(g, Factors) and leaf not in stay else g
        for leaf, g in gradients.items()
    }


def _of_one(
    recipe: Recipe, leaves: Sequence[Any], example: Any
) -> dict[int, Gradients]:
    """The gradients for one example: one backward pass, to taps and whole parameters.

    A tap is a zero added to the output of a product: the gradient with respect to it
    is the product's right factor, while the left one is seen on the way forward.
    """
    products = [p for found in recipe.factored.values() for p, _ in found]
    numbers = {p.position: i for i, p in enumerate(products)}

    def run(whole: dict[int, Any], taps: list[Any]) -> tuple[Any, list[Any]]:
        left: list[Any] = [None] * len(products)

        def tap(site: Any, *operands: Any) -> Any:
            i = numbers.get(site.position)
            if i is None:
                return NotImplemented
            left[i] = products[i].left(operands[1 - products[i].operand])
            return [site.bind(*operands)[0] + taps[i]]

        merged = [whole.get(i, leaf) for i, leaf in enumerate(leaves)]
        rules = {"dot_general": tap, "conv_general_dilated": tap}
        return recipe.evaluate(merged, example, rules), left

    outs: list[Any] = [p.equation.outvars[0].aval for p in products]
    taps = [jnp.zeros(out.shape, out.dtype) for out in outs]
    # Where the examples differ between devices the taps must, or their gradients
    # would be summed over the devices.
    taps, _ = vary_together((taps, example))
    whole = {leaf: leaves[leaf] for leaf in recipe.whole}
    (found, outs), left = jax.grad(run, argnums=(0, 1), has_aux=True)(whole, taps)
    right = [p.right(g) for p, g in zip(products, outs, strict=True)]
    pairs = zip(left, right, strict=True)
    for leaf, uses in recipe.factored.items():
        turned = [next(pairs)[:: -1 if flipped else 1] for _, flipped in uses]
        found[leaf] = Factors(*map(jnp.concatenate, zip(*turned, strict=True)))
    return found
