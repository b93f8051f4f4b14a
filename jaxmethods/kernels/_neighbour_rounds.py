"""Rounds of averaging with neighbours, each message read before the next may come.

The handshake of ASAP, NOTIFY-ACK, on the chips of a mesh: every worker has one receive
slot for each that sends to it. A remote copy fills the slot, and its receive semaphore
is the NOTIFY. Once the mean has read the slot, the receiver signals a semaphore of the
sender, the ACK, and only then may the sender fill that slot again. No barrier
stands between rounds: a worker runs ahead as far as its own neighbours allow.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..core import axis_size, check_choice, check_integer
from ._batch_axes import outputs_like

_LANES = 128
_MEMORY = 2**23  # bytes: the slots and the buffers of one block
_MOST_ROWS = 1024
_LOGICAL = pl.DeviceIdType.LOGICAL


def neighbour_rounds(
    x: jax.Array,
    axis_name: Any,
    senders: np.ndarray,
    *,
    num_rounds: int = 1,
    implementation: str = "xla",
    collective_id: int = 0,
) -> jax.Array:
    """Averages with neighbours, `num_rounds` times: x <- mean of own and received x.

    `implementation="pallas"` is one kernel for all rounds, for TPUs, where "xla" is a
    collective permutation for each sender and round, and a sum. Each block of x goes
    through all its rounds while it is in fast memory, and a worker waits for its own
    neighbours alone. It is not the default: it was compared with the definition in
    interpret mode, under a race detector, and compiled for TPU v4, v5e, v5p and v6e,
    but run on none.

    Args:
        x: floating (...): the worker's own values.
        axis_name: The mapped axis, of N workers; the kernel needs a name of a mesh
            inside `shard_map`, over all of its axes, and is "xla" elsewhere.
        senders: int (N, k), values and no tracer: whom each worker receives from.
            Every column is a permutation.
        num_rounds: At least 0, the same on all workers.
        implementation: "xla" or "pallas"; the latter on TPUs in float32 and bfloat16,
            and what "xla" does elsewhere.
        collective_id: The kernel's barrier: kernels of other neighbours that may run
            in the same program want another one.

    Returns:
        As `x`. Sums in float32 or wider, in the order of the columns, own x first.

    Raises:
        ValueError: `senders` holds a column that is no permutation, or has not the
            size of the axis; `implementation` is none of the two.

    Complexity:
        k times the bytes of x leave a worker in each round, in both.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> ring = np.array([[2], [0], [1]])  # each receives from the one before it
        >>> one = lambda x: neighbour_rounds(x, "i", ring)
        >>> jax.vmap(one, axis_name="i")(jnp.array([0.0, 2.0, 8.0])).tolist()
        [4.0, 1.0, 5.0]

    References:
        Kadav and Kruus 2016, arXiv:1612.08608 (NOTIFY-ACK).
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    check_integer(num_rounds, "num_rounds", 0)
    senders = np.asarray(senders)
    _check_senders(senders, axis_size(axis_name, "neighbour_rounds"), axis_name)
    definition = partial(
        _permuted, axis_name=axis_name, senders=senders, num_rounds=num_rounds
    )
    if implementation == "xla" or not _has_kernel(x, axis_name):
        return definition(x)
    kernel = partial(
        _handshaken,
        axis_name=axis_name,
        senders=senders,
        num_rounds=num_rounds,
        collective_id=collective_id,
    )
    if 0 in (x.size, num_rounds, senders.shape[1]):
        return definition(x)
    return _by_platform(definition, kernel, x)


def mean_of(own: Any, received: Sequence[Any]) -> Any:
    """The mean of own and received values, summed in their order, own first.

    One rule for all ways to average, jax and numpy alike: sums in float32 or wider,
    times the share of one, rounded to that dtype. XLA divides by a constant in this way
    too, so all give the same bits.

    Args:
        own: floating (...), of jax or numpy.
        received: As `own` each, of the same kind.

    Returns:
        As `own`.

    Example:
        >>> float(mean_of(np.float32(1), [np.float32(3), np.float32(5)]))
        3.0
    """
    wide = np.promote_types(own.dtype, np.float32)
    total = own.astype(wide)
    for other in received:
        total = total + other.astype(wide)
    share = np.asarray(1 / (len(received) + 1), wide)
    return (total * share).astype(own.dtype)


def _permuted(
    x: jax.Array, *, axis_name: Any, senders: np.ndarray, num_rounds: int
) -> jax.Array:
    """The definition."""
    pairs = [[(int(s), r) for r, s in enumerate(column)] for column in senders.T]

    def one(_: Any, x: jax.Array) -> jax.Array:
        return mean_of(x, [jax.lax.ppermute(x, axis_name, p) for p in pairs])

    if num_rounds == 1:
        return one(None, x)
    return jax.lax.fori_loop(0, num_rounds, one, x)


def _check_senders(senders: np.ndarray, size: int, axis_name: Any) -> None:
    if senders.ndim != 2 or len(senders) != size:
        raise ValueError(
            f"senders is {senders.dtype}{list(senders.shape)} and the axis "
            f"{axis_name!r} of {size}; wanted ({size}, k): a row for each worker."
        )
    for place, column in enumerate(senders.T):
        if not np.array_equal(np.sort(column), np.arange(size)):
            raise ValueError(
                f"column {place} of senders is {column.tolist()}; wanted a permutation "
                f"of 0..{size - 1}: one that receives nothing would be given zeros."
            )


def _has_kernel(x: jax.Array, axis_name: Any) -> bool:
    """Whether the axis is one of a mesh that is wholly the caller's, and x fits."""
    mesh = jax.sharding.get_abstract_mesh()
    whole = set(mesh.manual_axes) == set(mesh.axis_names)
    known = x.dtype in (jnp.float32, jnp.bfloat16)
    return known and whole and axis_name in mesh.manual_axes


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _by_platform(definition: Any, kernel: Any, x: jax.Array) -> jax.Array:
    @custom_vmap
    def choose(x: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, tpu=kernel, default=definition)

    @choose.def_vmap
    def rule(_: int, mapped: Any, x: jax.Array) -> Any:
        """Rounds act on each entry alone: a batch is a longer x."""
        return choose(x), mapped[0]

    return choose(x)


@_by_platform.defjvp
def _derivative(definition: Any, kernel: Any, primals: Any, tangents: Any) -> Any:
    """The map is linear."""
    return _by_platform(definition, kernel, *primals), definition(*tangents)


def _handshaken(
    x: jax.Array,
    *,
    axis_name: str,
    senders: np.ndarray,
    num_rounds: int,
    collective_id: int = 0,
    acknowledge: bool = True,
    interpret: Any = False,
) -> jax.Array:
    """The Pallas kernel; without `acknowledge` it is wrong, and a test says how."""
    degree = senders.shape[1]
    peers = _devices(np.stack([senders.T, np.argsort(senders, axis=0).T]), axis_name)
    tile = 32 // x.dtype.itemsize  # rows: 8 of 4 bytes, 16 of 2
    rows = math.ceil(x.size / (_LANES * tile)) * tile
    fitting = _MEMORY // ((degree + 5) * _LANES * x.dtype.itemsize) // tile * tile
    height = max(tile, min(rows, _MOST_ROWS, fitting))
    blocks = math.ceil(rows / height)
    flat = jnp.pad(x.reshape(-1), (0, blocks * height * _LANES - x.size))
    block = pl.BlockSpec((height, _LANES), lambda i: (i, 0))
    out = pl.pallas_call(
        partial(
            _block_rounds,
            num_rounds=num_rounds,
            acknowledge=acknowledge,
        ),
        grid=(blocks,),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), block],
        out_specs=block,
        out_shape=outputs_like(lambda x: x.reshape(-1, _LANES), flat)[0],
        scratch_shapes=[
            pltpu.VMEM((height, _LANES), x.dtype),
            pltpu.VMEM((degree, height, _LANES), x.dtype),
            pltpu.SemaphoreType.DMA((degree,)),
            pltpu.SemaphoreType.DMA((degree,)),
            pltpu.SemaphoreType.REGULAR((degree,)),
        ],
        compiler_params=pltpu.CompilerParams(
            collective_id=collective_id, has_side_effects=True
        ),
        interpret=interpret,
        name="neighbour_rounds",
    )(peers, flat.reshape(-1, _LANES))
    return out.reshape(-1)[: x.size].reshape(x.shape)


def _devices(workers: np.ndarray, axis_name: str) -> jax.Array:
    """The devices of some workers (..., N), as the kernel of each of the N sees them.

    They are numbered through the whole mesh; along its other axes all stay put.
    """
    mesh = jax.sharding.get_abstract_mesh()
    after = mesh.axis_names[mesh.axis_names.index(axis_name) + 1 :]
    stride = math.prod(mesh.shape[name] for name in after)
    here = jax.lax.axis_index(axis_name)
    steps = jnp.asarray(workers, jnp.int32)[..., here] - here
    return jax.lax.axis_index(mesh.axis_names) + steps * stride


def _block_rounds(*refs: Any, num_rounds: int, acknowledge: bool) -> None:
    """All rounds of one block. Every semaphore is at zero when it ends."""
    peers, x, out, held, slots, sent, notified, acknowledged = refs
    columns = range(slots.shape[0])

    def signal_sender(semaphore: Any, column: int) -> None:
        pl.semaphore_signal(
            semaphore, 1, device_id=peers[0, column], device_id_type=_LOGICAL
        )

    def wait_for_acks() -> None:
        for column in columns if acknowledge else ():
            pl.semaphore_wait(acknowledged.at[column], 1)

    @pl.when(pl.program_id(0) == 0)
    def _():
        # Nobody may write into slots that are not there yet.
        barrier = pltpu.get_barrier_semaphore()
        for column in columns:
            signal_sender(barrier, column)
        pl.semaphore_wait(barrier, len(columns))

    held[...] = x[...]

    def one_round(step: jax.Array, _: None) -> None:
        @pl.when(step > 0)
        def _():
            wait_for_acks()

        copies = [
            pltpu.make_async_remote_copy(
                held,
                slots.at[column],
                sent.at[column],
                notified.at[column],
                device_id=peers[1, column],
                device_id_type=_LOGICAL,
            )
            for column in columns
        ]
        # All are sent before any is awaited: a cycle of workers would wait for ever.
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()
        held[...] = mean_of(held[...], [slots[column] for column in columns])
        for column in columns if acknowledge else ():
            signal_sender(acknowledged.at[column], column)

    jax.lax.fori_loop(0, num_rounds, one_round, None)
    wait_for_acks()
    out[...] = held[...]
