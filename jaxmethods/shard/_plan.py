"""A plan: where each parameter of a loss lies on a mesh, and what that costs."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core import check_integer, leaf_paths
from ._constrain import check_batch, constrained, like_params
from ._layout import Layout, Split

DATA, MODEL = "data", "model"


@dataclass(frozen=True)
class PlanRow:
    """What a plan does with one parameter; bytes and flops are a device's.

    Attributes:
        path: Where the parameter sits.
        shape: Its whole shape.
        choice: `"replicate"`, `"column"`, `"row"` or `"full"`.
        flops: Of the layer's forward pass in one step.
        parameter_bytes: Held.
        gradient_bytes: Held between the backward pass and the update.
        optimizer_bytes: Of the optimizer state that is like the parameter.
        activation_bytes: That the layer's backward pass keeps of the forward pass.
        wire_bytes: Sent in a training step, for the parameter, its gradient and
            activations.
        entering: Where the examples lie that enter the layer, and, where the group
            shares them, the features: a PartitionSpec of (examples, features). None
            for what is no layer.
        leaving: The same of its result.
    """

    path: tuple[Any, ...]
    shape: tuple[int, ...]
    choice: str
    flops: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: float
    wire_bytes: float
    entering: P | None
    leaving: P | None


@dataclass(frozen=True)
class Plan:
    """Where each parameter of a loss lies on a mesh; `str(plan)` is a table.

    Attributes:
        mesh: The mesh, axes "data" and "model".
        specs: A tree like the parameters of PartitionSpec.
        rows: One `PlanRow` a parameter, in the order of the leaves.
        splits: How each kernel that a group splits enters its product.
        full: How each fully sharded parameter enters its product.
        other_bytes: What a device holds besides: its part of the batch, counters of the
            optimizer, activations before any layer, the largest gathered kernel.
    """

    mesh: Mesh
    specs: Any
    rows: tuple[PlanRow, ...]
    splits: tuple[Split, ...]
    full: tuple[Split, ...]
    other_bytes: float

    @property
    def parameter_bytes(self) -> int:
        """Bytes of parameters that a device holds."""
        return sum(row.parameter_bytes for row in self.rows)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of optimizer state like parameters that a device holds."""
        return sum(row.optimizer_bytes for row in self.rows)

    @property
    def memory_bytes(self) -> float:
        """Bytes that a device holds in a training step, estimated.

        Parameters and optimizer state are exact; activations are what JAX keeps for
        the backward pass, of which XLA may compute some again, and to which it adds
        buffers. Measured on CPU, this is 0.6 to 1.4 times what a compiled program
        holds, 1.7 times for mixers, and a quarter or less where convolutions of few
        channels dominate.

        Fully sharded kernels count as gathered one at a time, which takes a schedule
        that keeps memory low. XLA's default on CPU has all of them alive at once: of 12
        layers of 512 x 512 with Adam on 8 devices 7.8 MB are planned, 28.0 compiled,
        and 7.2 with the compiler option `"xla_cpu_scheduler_type":
        "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"`. So does a `memory_limit` hold.
        """
        held = (
            row.parameter_bytes
            + row.gradient_bytes
            + row.optimizer_bytes
            + row.activation_bytes
            for row in self.rows
        )
        return sum(held) + self.other_bytes

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends in a training step, predicted.

        Of `apply(jax.value_and_grad(loss))`, as `wire` counts them. Within 5 % of the
        program compiled for CPU, measured: dense and convolutional nets, transformers
        and mixers, also under `jax.checkpoint`; recurrent layers; replicated or fully
        sharded layers in a scan; kernels used twice; products in float16; split layers
        with softmax, gates or permutations between them, or a derivative of one's own.
        Within 10 %: split layers around a scan, checkpointed one by one, or with their
        columns concatenated; an embedding; a fully sharded transformer under
        `nn.remat`.

        Further off, planned over compiled: kernels computed from several (LoRA 0.66)
        or batched (experts 0.83 to 1.28); gradients of split layers accumulated in a
        scan (0.86); fully sharded: embeddings (1.14 to 1.23), kernels that are
        transposed (1.40) or have a derivative of one's own (0.76), grouped convolutions
        (0.13). Second derivatives send more than a step (0.35). A bfloat16 sum counts 2
        bytes a number, and 4 where CPU widens it.
        """
        return sum(row.wire_bytes for row in self.rows)

    def optimizer_specs(self, state: Any) -> Any:
        """Where optimizer state lies: what is like a parameter lies where that does.

        Args:
            state: From `optimizer.init(params)`; shapes and dtypes suffice.

        Returns:
            A tree like the state of PartitionSpec. A leaf is like a parameter whose
            shape it has and with whose path its own ends; others are on all devices.
        """
        paths = [row.path for row in self.rows]
        shapes = [row.shape for row in self.rows]
        like, specs = like_params(state, paths, shapes), self._leaf_specs
        structure = jax.tree.structure(state)
        return structure.unflatten([P() if n is None else specs[n] for n in like])

    def place(self, params: Any) -> Any:
        """Puts parameters on the devices of the mesh, as the plan says.

        Args:
            params: A tree like the one the plan was made for.

        Returns:
            The same values, sharded. They may share buffers with `params`, so a step
            that donates them deletes `params` too.

        Raises:
            ValueError: The parameters have other paths or shapes than the plan.
        """
        self._check(params)
        return jax.device_put(params, self._shardings(self.specs))

    def place_optimizer(self, state: Any) -> Any:
        """Puts optimizer state on the devices of the mesh, as `optimizer_specs` says.

        Args:
            state: From `optimizer.init(params)`.

        Returns:
            The same values, sharded.
        """
        return jax.device_put(state, self._shardings(self.optimizer_specs(state)))

    def apply(
        self,
        fn: Callable[..., Any],
        *,
        batch_argument: int = 1,
        donate_argnums: int | Sequence[int] = (),
    ) -> Callable[..., Any]:
        """Jits a function with parameters and batch spread as the plan says.

        The examples are spread over all devices; at a split layer the group gathers
        them, at a fully sharded one all devices gather the kernel. Values and gradients
        are those of one device, to rounding.

        A gradient that a `scan` adds up is reduced once, after the loop; XLA would
        reduce in every round. That takes an `fn` that differentiates itself: not
        `jax.grad(plan.apply(loss))`. Gradients of grouped convolutions and of products
        with batched kernels are still reduced in every round, which the plan does not
        count and `wire` does.

        Args:
            fn: `fn(params, batch, *rest)`, such as `jax.value_and_grad(loss)` or a
                whole training step. Results that have the path and shape of a
                parameter, such as gradients and moments, are spread like it.
            batch_argument: Which argument the batch is, at least 1: 2 for
                `step(params, state, batch)`.
            donate_argnums: Arguments whose buffers the results may take, as for
                `jax.jit`; usually parameters and optimizer state.

        Returns:
            A jitted function with the same arguments; parameters best come from
            `place`, optimizer state from `place_optimizer`.

        Raises:
            TypeError: No argument is the batch.
            ValueError: `batch_argument` is below 1; when called: the batch does not
                divide over the devices; the parameters have other paths or shapes than
                the plan.
        """
        check_integer(batch_argument, "batch_argument", 1)
        layout = self.layout((DATA,))

        @functools.wraps(fn)
        def sharded(params: Any, *rest: Any) -> Any:
            self._check(params)
            if len(rest) < batch_argument:
                raise TypeError(
                    f"the applied function came with {1 + len(rest)} arguments; wanted "
                    f"params and, as argument {batch_argument}, the batch."
                )
            before = rest[: batch_argument - 1]
            batch, after = rest[batch_argument - 1], rest[batch_argument:]
            check_batch(
                batch,
                self.mesh.size,
                f"the batch (argument {batch_argument}; batch_argument= chooses it)",
            )

            def batch_first(params: Any, batch: Any, *others: Any) -> Any:
                first, last = others[: len(before)], others[len(before) :]
                return fn(params, *first, batch, *last)

            return constrained(batch_first, layout, params, batch, *before, *after)

        return jax.jit(sharded, donate_argnums=donate_argnums)

    def layout(self, shared: tuple[str, ...]) -> Layout:
        """What `constrained` needs: for all axes, or with "data" manual (`()`).

        Raises:
            ValueError: "data" is manual and a parameter is fully sharded.
        """
        full = [row.path for row in self.rows if row.choice == "full"]
        if full and not shared:
            raise ValueError(
                f"the plan shards {full} fully, over 'data' too; wanted parameters "
                "that every group holds: make the plan with `splitbrain`."
            )
        return Layout(
            mesh=self.mesh if shared else None,
            shared=shared,
            group=MODEL,
            members=self.mesh.size if shared else self.mesh.shape[MODEL],
            specs=tuple(self._leaf_specs),
            splits=self.splits,
            full=self.full,
        )

    @property
    def _leaf_specs(self) -> list[P]:
        return jax.tree.leaves(self.specs, is_leaf=_is_spec)

    def _shardings(self, specs: Any) -> Any:
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=_is_spec
        )

    def _check(self, params: Any) -> None:
        shapes = [getattr(x, "shape", ()) for x in jax.tree.leaves(params)]
        came = zip(leaf_paths(params), shapes, strict=True)
        wanted = ((row.path, row.shape) for row in self.rows)
        for got, planned in itertools.zip_longest(came, wanted):
            if got != planned:
                raise ValueError(
                    f"params have {_described(got)} where the plan has "
                    f"{_described(planned)}; wanted the parameters that the plan was "
                    "made for: make a plan for these."
                )

    def __str__(self) -> str:
        head = "layer,shape,choice,flops,parameter,gradient,optimizer,activation,wire"
        lines: list[tuple[str, ...]] = [tuple(head.split(","))]
        for row in self.rows:
            name = "/".join(map(str, row.path)) or "params"
            shape = "x".join(map(str, row.shape)) or "1"
            lines.append((name, shape, row.choice, *_numbers([row])))
        lines.append(("a device", "", "", *_numbers(self.rows)))
        mesh = " x ".join(f"{size} {axis}" for axis, size in self.mesh.shape.items())
        held, other = round(self.memory_bytes), round(self.other_bytes)
        return (
            f"{_aligned(lines, words=3)}\nmesh {mesh}; a device holds {held:,} bytes "
            f"(estimated), {other:,} of them not in the table"
        )


def check_mesh(mesh: Mesh) -> None:
    """Raises unless a mesh has the axes "data" and "model", both automatic."""
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


def _described(entry: tuple[tuple[Any, ...], tuple[int, ...]] | None) -> str:
    return "nothing" if entry is None else f"{entry[0]} of shape {entry[1]}"


def _numbers(rows: Sequence[PlanRow]) -> list[str]:
    names = "flops parameter_bytes gradient_bytes optimizer_bytes activation_bytes"
    columns = [*names.split(), "wire_bytes"]
    return [f"{round(sum(getattr(row, c) for row in rows)):,}" for c in columns]


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
