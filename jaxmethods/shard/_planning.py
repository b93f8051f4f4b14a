"""Plans a loss: costs its layers, and chooses where each parameter lies."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ..core import describe, leaf_paths
from ._budget import fit
from ._choice import COLUMN, FULL, REPLICATE, ROW, Choice, Prices
from ._constrain import check_batch, like_params
from ._costs import layers_of
from ._forced import Choices, forced_choices
from ._layout import Split
from ._memory import Memory
from ._plan import DATA, MODEL, Plan, PlanRow, check_mesh
from ._residuals import residual_bytes
from ._traffic import traffic_of


def plan(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    *,
    mesh: Mesh,
    optimizer: optax.GradientTransformation | None = None,
    memory_limit: int | None = None,
    choices: Choices = None,
) -> Plan:
    """Plans which layers of a loss to replicate, split over a group, or shard fully.

    Reads the layers of any function from its jaxpr. N = D x K devices form D groups of
    K members. A parameter of p numbers is replicated, which sends 2 (N - 1) / N p
    numbers a device and step for its gradient; split over its group by columns or rows,
    as `splitbrain` does, which sends activations instead; or fully sharded: parameter,
    gradient and optimizer state spread over all devices, the parameter gathered for
    each product, the gradient reduced and scattered, which sends 3 (N - 1) / N p, a
    first layer's 2 (N - 1) / N p. What sends least is chosen, and where that does not
    fit `memory_limit`, what sends least for each byte it saves; so without a limit
    nothing is fully sharded unasked.

    Args:
        loss: `loss(params, batch) -> scalar`, a mean over examples.
        params: A pytree; shapes and dtypes suffice.
        batch: A pytree of one training step's examples over all devices, each leaf
            with a leading axis of examples, or a scalar or key.
        mesh: Axes "data" (D) and "model" (K), both automatic.
        optimizer: Whose state is counted too.
        memory_limit: Bytes a device, for parameters, gradients, optimizer state,
            activations, a gathered kernel and the batch, as `Plan.memory_bytes` counts
            them, and so on CPU with the compiler option that it names. None: no limit.
        choices: What is settled beforehand: a mapping from paths to `"replicate"`,
            `"column"`, `"row"` or `"full"`, or a function of a path to one of them or
            None. A path chooses every parameter below it that can be laid out so;
            `{(): "full"}` shards fully what can be.

    Returns:
        A `Plan`. Warns where K > 1 and nothing is split, unless `choices` are given.

    Raises:
        TypeError: The loss is no scalar; a leaf of `params` is no array or number.
        ValueError: Other mesh axes; a batch that does not divide over the devices; a
            limit that no choice meets; a choice for an unknown path, or for a
            parameter that cannot be laid out so.

    Complexity:
        Three traces of the loss; no compilation. With a limit, about as many sums over
        the layers as there are parameters.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
        >>> loss = lambda w, x: jnp.mean(jnp.tanh(x @ w["a"]) @ w["b"])
        >>> w = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
        >>> made = plan(loss, w, jnp.ones((4, 3)), mesh=mesh, optimizer=optax.adam(0.1))
        >>> print(made)  # flops, and bytes
        layer     shape  choice     flops  parameter  gradient  optimizer  ...
        a         3x8    replicate    192         96        96        192  ...
        b         8x2    replicate    128         64        64        128  ...
        a device                      320        160       160        320  ...
        mesh 1 data x 1 model; a device holds 948 bytes (estimated), 52 of them ...
        >>> float(made.apply(loss)(made.place(w), jnp.zeros((4, 3))))
        0.0

    References:
        Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO, stage 3); Zhao et al. 2023,
        arXiv:2304.11277 (FSDP); Lai, Kadav, Kruus 2021, arXiv:2112.15317.
    """
    planning = start(loss, params, batch, mesh, optimizer)
    forced = forced_choices(choices, planning.paths, planning.prices)
    chosen = planning.prices.choose(forced)
    if memory_limit is not None:
        chosen = fit(planning.memory, chosen, forced, memory_limit)
    if not chosen and choices is None and planning.prices.members > 1:
        warnings.warn(planning.prices.why_nothing(), stacklevel=2)
    return planning.finish(chosen)


@dataclass(frozen=True)
class Planning:
    """A plan in the making.

    Attributes:
        params: A pytree; shapes and dtypes suffice.
        mesh: The mesh.
        prices: What choices send.
        memory: What choices hold.
    """

    params: Any
    mesh: Mesh
    prices: Prices
    memory: Memory

    @functools.cached_property
    def paths(self) -> list[tuple[Any, ...]]:
        """The path of each parameter."""
        return leaf_paths(self.params)

    def finish(self, chosen: Choice) -> Plan:
        """The plan of some choices."""
        prices, spread = self.prices, self.prices.spread_axes(chosen)
        full = {n: prices.full_axis(n) for n in chosen if chosen[n] == FULL}
        leaves = range(len(prices.sizes))
        specs = [_spec(spread.get(n), full.get(n)) for n in leaves]
        splits = [
            self._kernel(n, spread[n]) for n in chosen if chosen[n] in (COLUMN, ROW)
        ]
        gathered = [self._kernel(n, axis) for n, axis in full.items()]
        other = self.memory.gathered(chosen) + self.memory.unassigned
        return Plan(
            self.mesh,
            jax.tree.structure(self.params).unflatten(specs),
            tuple(self._row(n, chosen, spread) for n in leaves),
            tuple(splits),
            tuple(gathered),
            other + self.memory.other,
        )

    def _kernel(self, leaf: int, axis: int | None) -> Split:
        """The kernel where it enters its product, and its spread axis there."""
        shape, layer = self.prices.shapes[leaf], self.prices.by_leaf.get(leaf)
        axes = layer.operand_axes if layer else ()
        axes = axes or tuple(range(len(shape)))
        return Split(leaf, tuple(shape[a] for a in axes), axes.index(axis))

    def _row(self, leaf: int, chosen: Choice, spread: dict[int, int]) -> PlanRow:
        prices, layer = self.prices, self.prices.by_leaf.get(leaf)
        # A bias along split columns is split with them.
        usual = COLUMN if leaf in spread else REPLICATE
        choice = chosen.get(leaf, usual)
        sent = prices.gradient(leaf, chosen, leaf in spread)
        entering = leaving = None
        if layer is not None:
            sent += prices.activations(layer, chosen)
            entering, leaving = _ACTIVATIONS.get(choice, (_OWN, _OWN))
        return PlanRow(
            self.paths[leaf],
            prices.shapes[leaf],
            choice,
            layer.flops // prices.devices if layer else 0,
            *self.memory.held(leaf, chosen, leaf in spread),
            sent,
            entering,
            leaving,
        )


def start(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    mesh: Mesh,
    optimizer: optax.GradientTransformation | None = None,
) -> Planning:
    """Costs the layers of a loss on a mesh, before anything is chosen."""
    check_mesh(mesh)
    params = _arrays(params)
    devices, leaves = mesh.size, jax.tree.leaves(params)
    check_batch(batch, devices)
    _check_scalar(loss, params, batch)
    prices = Prices(
        groups=mesh.shape[DATA],
        members=mesh.shape[MODEL],
        layers=layers_of(loss, params, batch),
        shapes=[x.shape for x in leaves],
        sizes=[_nbytes(x) for x in leaves],
        traffic=traffic_of(loss, params, batch),
    )
    state = () if optimizer is None else jax.eval_shape(optimizer.init, params)
    states, counters = _state_bytes(state, params)
    examples = sum(map(_nbytes, jax.tree.leaves(batch))) // devices
    kept = residual_bytes(loss, params, batch)
    return Planning(
        params, mesh, prices, Memory(prices, states, kept, counters + examples)
    )


def _arrays(params: Any) -> Any:
    """Parameters with shapes and dtypes: Python numbers become arrays.

    Raises:
        TypeError: A leaf is none.
    """

    def array(path: tuple[Any, ...], x: Any) -> Any:
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return x
        if isinstance(x, bool | int | float | complex):
            return jnp.asarray(x)
        raise TypeError(
            f"params has {x!r} at {path}; wanted arrays: keep what is none out of the "
            "loss's params, of an equinox module by eqx.partition(model, eqx.is_array) "
            "and eqx.combine in the loss."
        )

    leaves, treedef = jax.tree.flatten(params)
    pairs = zip(leaf_paths(params), leaves, strict=True)
    return treedef.unflatten([array(path, x) for path, x in pairs])


def _check_scalar(loss: Callable[..., Any], params: Any, batch: Any) -> None:
    shapes = jax.eval_shape(loss, params, batch)
    one = jax.tree.leaves(shapes)
    if jax.tree.structure(shapes) != jax.tree.structure(0) or one[0].shape:
        raise TypeError(
            f"loss returns {jax.tree.map(describe, shapes)}; wanted a scalar, the mean "
            "over examples: what else a step returns is for the function that "
            "Plan.apply takes."
        )


def _state_bytes(state: Any, params: Any) -> tuple[list[int], int]:
    """Bytes of optimizer state like each parameter, and of the rest."""
    leaves = jax.tree.leaves(params)
    shapes = [x.shape for x in leaves]
    like = like_params(state, leaf_paths(params), shapes)
    states, rest = [0] * len(leaves), 0
    for leaf, x in zip(like, jax.tree.leaves(state), strict=True):
        if leaf is None:
            rest += _nbytes(x)
        else:
            states[leaf] += _nbytes(x)
    return states, rest


def _nbytes(x: Any) -> int:
    dtype = getattr(x, "dtype", None)
    return 0 if dtype is None else x.size * getattr(dtype, "itemsize", 0)


# Where (examples, features) lie.
_OWN, _SHARED = P((DATA, MODEL)), P(DATA)
_SPREAD = P(DATA, MODEL)
_ACTIVATIONS = {COLUMN: (_SHARED, _SPREAD), ROW: (_SPREAD, _OWN)}


def _spec(spread: int | None, full: int | None) -> P:
    # No trailing None: jit takes P("model", None) and P("model") for two shardings.
    if full is not None:
        return P(*[None] * full, (DATA, MODEL))
    return P() if spread is None else P(*[None] * spread, MODEL)
