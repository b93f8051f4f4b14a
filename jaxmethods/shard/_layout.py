"""Where parameters, rows and columns lie on the automatic axes of a mesh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA_LABEL = "batch"  # the label of values that depend on the batch


@dataclass(frozen=True)
class Split:
    """A kernel that is spread over devices.

    Attributes:
        leaf: The parameter.
        shape: The kernel's shape where it enters the product.
        axis: The axis of it that is spread.
    """

    leaf: int
    shape: tuple[int, ...]
    axis: int


@dataclass(frozen=True)
class Layout:
    """Where things lie on the automatic axes of a mesh.

    Attributes:
        mesh: The mesh; None inside `shard_map`, where the context has it.
        shared: The axes over which gathered rows stay spread: ("data",), or () where
            "data" is manual.
        group: The axis of the group.
        members: Devices over which a device's own rows are spread.
        specs: A PartitionSpec a parameter, in the order of the leaves.
        splits: The kernels that are spread over the group.
        full: The kernels that are spread over all devices.
        examples: How many examples the batch has.
    """

    mesh: Mesh | None
    shared: tuple[str, ...]
    group: str
    members: int
    specs: tuple[P, ...]
    splits: tuple[Split, ...]
    full: tuple[Split, ...] = ()
    examples: int = 1

    @property
    def own(self) -> tuple[str, ...]:
        """The axes over which each device keeps its own rows."""
        return (*self.shared, self.group)

    def examples_axis(self, shape: Sequence[int], axes: Sequence[int]) -> int | None:
        """The axis of examples among some: the first that all devices can share.

        One that holds all examples comes first: heads or rounds may divide too.
        """
        able = [axis for axis in axes if shape[axis] % self.members == 0]
        whole = [axis for axis in able if shape[axis] % self.examples == 0]
        return next(iter(whole or able), None)

    def put(self, x: jax.Array, spec: P) -> jax.Array:
        """Constrains where a value lies."""
        place = spec if self.mesh is None else NamedSharding(self.mesh, spec)
        return jax.lax.with_sharding_constraint(x, place)

    def spec(self, ndim: int, axes: dict[int, Any]) -> P:
        """Spreads axes of a value over axes of the mesh."""
        return P(*[axes.get(axis) or None for axis in range(ndim)])

    def spread(self, x: jax.Array, axes: dict[Any, Any]) -> jax.Array:
        """Spreads axes of a value over axes of the mesh; without any, leaves it be."""
        if not any(axis is not None for axis in axes):
            return x
        return self.put(x, self.spec(x.ndim, axes))

    def gathered(self, x: jax.Array) -> jax.Array:
        """All of a value, on every device."""
        return self.put(x, P())
