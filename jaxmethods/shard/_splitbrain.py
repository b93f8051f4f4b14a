"""SplitBrain: replicates what computes much, splits what weighs much."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from ._plan import Plan
from ._planning import start


def splitbrain(
    loss: Callable[[Any, Any], jax.Array], params: Any, batch: Any, *, mesh: Mesh
) -> Plan:
    """Plans which layers of a loss to replicate and which to split over a group.

    Reads the layers of any function from its jaxpr. N = D x K devices form D groups of
    K members; each device has B rows. Convolutions, norms and everything else that is
    no dense layer are replicated. A dense layer of p parameters is split over the
    group where that sends less: replicated it costs 2 (N - 1) / N p numbers a device
    and step for its gradient, split 2 (D - 1) / D p / K, and for activations of width
    d that cross into or out of it (K - 1) B d forward and as many backward. Layers with
    only elementwise functions between are split in pairs, the first by columns, the
    second by rows, and exchange nothing in between. A last layer of fewer than 128
    outputs stays replicated, as does a layer whose width K does not divide, or whose
    kernel is shared, batched or used inside a loop.

    Args:
        loss: `loss(params, batch) -> scalar`, a mean over examples.
        params: A pytree; shapes and dtypes suffice.
        batch: A pytree of one training step's examples over all devices, each leaf
            with a leading axis of examples, or a scalar or key.
        mesh: Axes "data" (D) and "model" (K), both automatic.

    Returns:
        A `Plan`. Warns where K > 1 and no layer is worth splitting.

    Raises:
        TypeError: The loss is no scalar; a leaf of `params` is no array or number.
        ValueError: Other mesh axes; a batch that does not divide over the devices.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
        >>> loss = lambda w, x: jnp.mean(jnp.tanh(x @ w["a"]) @ w["b"])
        >>> w = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
        >>> plan = splitbrain(loss, w, jnp.ones((4, 3)), mesh=mesh)
        >>> print(plan)  # flops, and bytes
        layer     shape  choice     flops  parameter  ...  wire
        a         3x8    replicate    192         96  ...     0
        b         8x2    replicate    128         64  ...     0
        a device                      320        160  ...     0
        mesh 1 data x 1 model; a device holds 624 bytes (estimated), 48 of them ...
        >>> float(plan.apply(loss)(plan.place(w), jnp.zeros((4, 3))))
        0.0

    References:
        Lai, Kadav, Kruus 2021, "SplitBrain: Hybrid Data and Model Parallel Deep
        Learning", arXiv:2112.15317; Krizhevsky 2014, arXiv:1404.5997; Shoeybi et al.
        2019, arXiv:1909.08053 (column and row pairs).
    """
    planning = start(loss, params, batch, mesh)
    chosen = planning.prices.choose()
    if not chosen and planning.prices.members > 1:
        warnings.warn(planning.prices.why_nothing(), stacklevel=2)
    return planning.finish(chosen)
