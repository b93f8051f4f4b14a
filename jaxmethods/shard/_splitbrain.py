"""SplitBrain: replicates what computes much, splits what weighs much."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core import leaf_paths
from ._choice import Choice, Prices
from ._constrain import Layout, Split, check_batch, constrained
from ._costs import Layer, layers_of

DATA, MODEL = "data", "model"


@dataclass(frozen=True)
class PlanRow:
    """What a plan does with one parameter; bytes and flops are a device's.

    Attributes:
        path: Where the parameter sits.
        shape: Its whole shape.
        choice: `"replicate"`, `"column"` or `"row"`.
        flops: Of the layer's forward pass in one step.
        parameter_bytes: Held.
        wire_bytes: Sent in a training step, for the gradient and for activations.
    """

    path: tuple[Any, ...]
    shape: tuple[int, ...]
    choice: str
    flops: int
    parameter_bytes: int
    wire_bytes: float


@dataclass(frozen=True)
class Plan:
    """Where each parameter of a loss lies on a mesh; `str(plan)` is a table.

    Attributes:
        mesh: The mesh, axes "data" and "model".
        specs: A tree like the parameters of PartitionSpec.
        rows: One `PlanRow` a parameter, in the order of the leaves.
        splits: How each split kernel enters its product.
    """

    mesh: Mesh
    specs: Any
    rows: tuple[PlanRow, ...]
    splits: tuple[Split, ...]

    @property
    def parameter_bytes(self) -> int:
        """Bytes of parameters that a device holds."""
        return sum(row.parameter_bytes for row in self.rows)

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends in a training step, predicted."""
        return sum(row.wire_bytes for row in self.rows)

    def place(self, params: Any) -> Any:
        """Puts parameters on the devices of the mesh, as the plan says.

        Args:
            params: A tree like the one the plan was made for.

        Returns:
            The same values, sharded. They may share buffers with `params`, so a step
            that donates them deletes `params` too.
        """
        shardings = jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec), self.specs, is_leaf=_is_spec
        )
        return jax.device_put(params, shardings)

    def apply(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Jits a function with parameters and batch spread as the plan says.

        The examples are spread over all devices; at a split layer the group gathers
        them. Values and gradients are those of one device, to rounding.

        Args:
            fn: `fn(params, batch, *rest)`, such as `jax.value_and_grad(loss)` or a
                whole training step. Results that have the tree and shapes of the
                parameters are spread like them.

        Returns:
            A jitted function with the same arguments; parameters best come from
            `place`.

        Raises:
            ValueError: The batch does not divide over the devices.
        """
        layout = self.layout((DATA,))

        @functools.wraps(fn)
        def sharded(params: Any, batch: Any, *rest: Any) -> Any:
            check_batch(batch, self.mesh.size)
            return constrained(fn, layout, params, batch, *rest)

        return jax.jit(sharded)

    def layout(self, shared: tuple[str, ...]) -> Layout:
        """What `constrained` needs: for all axes, or with "data" manual (`()`)."""
        return Layout(
            mesh=self.mesh if shared else None,
            shared=shared,
            group=MODEL,
            members=self.mesh.size if shared else self.mesh.shape[MODEL],
            specs=tuple(jax.tree.leaves(self.specs, is_leaf=_is_spec)),
            splits=self.splits,
        )

    def __str__(self) -> str:
        head = ("layer", "shape", "choice", "flops", "bytes", "wire bytes")
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            numbers = (row.flops, row.parameter_bytes, round(row.wire_bytes))
            name = "/".join(map(str, row.path)) or "params"
            shape = "x".join(map(str, row.shape)) or "1"
            lines.append((name, shape, row.choice, *(f"{n:,}" for n in numbers)))
        flops = sum(row.flops for row in self.rows)
        numbers = (flops, self.parameter_bytes, round(self.wire_bytes))
        lines.append(("a device", "", "", *(f"{n:,}" for n in numbers)))
        return _aligned(lines, words=3)


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
        ValueError: Other mesh axes; a batch that does not divide over the devices.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
        >>> loss = lambda w, x: jnp.mean(jnp.tanh(x @ w["a"]) @ w["b"])
        >>> w = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
        >>> plan = splitbrain(loss, w, jnp.ones((4, 3)), mesh=mesh)
        >>> print(plan)
        layer     shape  choice     flops  bytes  wire bytes
        a         3x8    replicate    192     96           0
        b         8x2    replicate    128     64           0
        a device                      320    160           0
        >>> float(plan.apply(loss)(plan.place(w), jnp.zeros((4, 3))))
        0.0

    References:
        Lai, Kadav, Kruus 2021, "SplitBrain: Hybrid Data and Model Parallel Deep
        Learning", arXiv:2112.15317; Krizhevsky 2014, arXiv:1404.5997; Shoeybi et al.
        2019, arXiv:1909.08053 (column and row pairs).
    """
    _check_mesh(mesh)
    check_batch(batch, mesh.size)
    leaves, treedef = jax.tree.flatten(params)
    prices = Prices(
        groups=mesh.shape[DATA],
        members=mesh.shape[MODEL],
        layers=layers_of(loss, params, batch),
        shapes=[x.shape for x in leaves],
        sizes=[x.size * x.dtype.itemsize for x in leaves],
    )
    chosen = prices.choose()
    if not chosen and prices.members > 1:
        warnings.warn(prices.why_nothing(), stacklevel=2)
    spread = prices.spread_axes(chosen)
    specs = [_spec(spread.get(number)) for number in range(len(leaves))]
    splits = tuple(
        Split(layer.leaf, *_operand(layer, leaves[layer.leaf].shape, spread))
        for layer in prices.layers
        if layer.leaf in chosen
    )
    rows = _rows(prices, chosen, leaf_paths(params))
    return Plan(mesh, treedef.unflatten(specs), rows, splits)


def _rows(
    prices: Prices, chosen: Choice, paths: Sequence[tuple[Any, ...]]
) -> tuple[PlanRow, ...]:
    layers = {layer.leaf: layer for layer in prices.layers}
    spread = prices.spread_axes(chosen)
    devices = prices.groups * prices.members
    rows = []
    for leaf, (path, size) in enumerate(zip(paths, prices.sizes, strict=True)):
        layer = layers.get(leaf)
        sent = prices.gradient(leaf, leaf in spread)
        if layer is not None:
            sent += prices.activations(layer, chosen)
        # A bias along split columns is split with them.
        choice = chosen.get(leaf, "column" if leaf in spread else "replicate")
        rows.append(
            PlanRow(
                path,
                prices.shapes[leaf],
                choice,
                layer.flops // devices if layer else 0,
                size // (prices.members if leaf in spread else 1),
                sent,
            )
        )
    return tuple(rows)


def _operand(
    layer: Layer, shape: tuple[int, ...], spread: dict[int, int]
) -> tuple[tuple[int, ...], int]:
    """The kernel's shape where it enters its product, and its spread axis there."""
    axes = layer.operand_axes
    return tuple(shape[a] for a in axes), axes.index(spread[layer.leaf])


def _spec(spread: int | None) -> P:
    # No trailing None: jit takes P("model", None) and P("model") for two shardings.
    return P() if spread is None else P(*[None] * spread, MODEL)


def _aligned(lines: list[tuple[str, ...]], words: int) -> str:
    """A table: the first columns are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        left = [c.ljust(w) for c, w in zip(line[:words], widths, strict=False)]
        right = [c.rjust(w) for c, w in zip(line[words:], widths[words:], strict=True)]
        texts.append("  ".join(left + right))
    return "\n".join(texts)


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def _check_mesh(mesh: Mesh) -> None:
    if set(mesh.axis_names) != {DATA, MODEL}:
        raise ValueError(
            f"mesh has the axes {mesh.axis_names}; wanted ('data', 'model'): "
            "Mesh(devices.reshape(D, K), ('data', 'model'))."
        )
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"mesh has axes of types {mesh.axis_types}; wanted Auto: "
            "Mesh(mesh.devices, mesh.axis_names)."
        )
