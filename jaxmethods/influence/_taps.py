"""Evaluates a loss with taps: zeros added where it multiplies by a parameter.

The gradient with respect to a tap is the gradient of a product's output, from which its
right factor is made; the other operands, which make the left one, are seen on the way.
Inside a `scan` there is a tap for each round, and so are the operands seen: a weight
that a loop of T rounds applies has the factors of T products.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax

from ..core import interpret, scan_arity
from ._blocks import Position, Use
from ._pooling import max_pool
from ._products import PRIMITIVES, find_product
from ._uses import INLINE

Operands = dict[Position, tuple[jax.Array, ...]]


def evaluate(
    jaxpr: Any,
    args: Sequence[Any],
    taps: Mapping[Position, jax.Array],
    uses: Mapping[Position, Use],
    prefix: Position = (),
) -> tuple[list[Any], Operands]:
    """Evaluates a closed jaxpr with taps.

    Args:
        jaxpr: The loss, or the body of a loop in it.
        args: One value an input.
        taps: What to add to outputs of products, by their position in the loss;
            stacked over the loops between this jaxpr and the product.
        uses: A use of each product.
        prefix: The position of this jaxpr.

    Returns:
        The outputs, and the other operands of each product, stacked likewise.
    """
    seen: Operands = {}

    def product(site: Any, *operands: Any) -> Any:
        here = (*prefix, *site.position)
        if here not in taps:
            rule = FASTER.get(site.equation.primitive.name)
            return NotImplemented if rule is None else rule(site, *operands)
        use = uses[here]
        seen[here] = (*operands[: use.weight], *operands[use.weight + 1 :])
        return [_output(site, use.product.on_cpus, *operands) + taps[here]]

    def loop(site: Any, *operands: Any) -> Any:
        here, params = (*prefix, *site.position), site.equation.params
        inside = {p: tap for p, tap in taps.items() if p[: len(here)] == here}
        if not inside:
            return NotImplemented
        num_consts, num_carry = scan_arity(site.equation)
        split = num_consts + num_carry
        consts, start = operands[:num_consts], list(operands[num_consts:split])

        def step(carry: Any, entry: Any) -> Any:
            xs, taps = entry
            args = [*consts, *carry, *xs]
            outs, found = evaluate(params["jaxpr"], args, taps, uses, here)
            return outs[:num_carry], (outs[num_carry:], found)

        how = {k: params[k] for k in ("length", "reverse", "unroll")}
        entries = list(operands[split:]), inside
        carry, (ys, found) = lax.scan(step, start, entries, **how)
        seen.update(found)
        return [*carry, *ys]

    rules = FASTER | {"scan": loop} | dict.fromkeys(PRIMITIVES, product)
    return interpret(jaxpr, rules, args, inline=INLINE), seen


def convolve(site: Any, *operands: Any) -> Any:
    """A rule for convolutions: small ones from their patches, on CPUs."""
    product = find_product(site.equation, 1)
    if product is None or product.on_cpus is None:
        return NotImplemented
    return [_output(site, product.on_cpus, *operands)]


def _output(
    site: Any, on_cpus: Callable[..., jax.Array] | None, *operands: Any
) -> jax.Array:
    """The output of a product, which CPUs may take in another way."""

    def as_it_is(*operands: Any) -> jax.Array:
        return site.bind(*operands)[0]

    if on_cpus is None:
        return as_it_is(*operands)
    return lax.platform_dependent(*operands, cpu=on_cpus, default=as_it_is)


# What CPUs have faster in another way than the primitive's.
FASTER = {"reduce_window_max": max_pool, "conv_general_dilated": convolve}
