"""Messages between neighbours in place of all with all."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._codec import Codec, check_codec
from ._exchange import check_axis_name, each_its_own, in_dtypes_of
from ._graphs import Graph, check_workers


def graph_exchange(
    codec: Codec, axis_name: Any, graph: Graph
) -> optax.GradientTransformation:
    """Replaces a worker's gradients by a mean over itself and its in-neighbours.

    Each worker encodes its gradients and sends the message to its neighbours alone, k
    times `nbytes(message)` bytes; the mean is over its own decoded message and the k
    that it receives. Workers end with different updates, so their parameters drift
    apart unless these are averaged too: wrap the optimizer in `decentralized`, or
    call `stochastic_reduce` on the parameters now and then.

    Args:
        codec: How to compress, such as `adacomp()`.
        axis_name: The mapped axis, or a tuple of axes of a mesh, not of nested `vmap`.
        graph: As many workers as the axis has, all of one degree, that does not cycle.

    Returns:
        An optax transformation; `init` needs no bound axis. Updates keep the dtype of
        the gradients.

    Raises:
        TypeError: `codec` is no `Codec`; `axis_name` is no name of an axis.
        ValueError: The graph cycles, or its degrees differ; `axis_name` is an empty
            tuple; in `update`, the graph has another size than the axis.
        NameError: In `update`, the axis is not bound.

    Complexity:
        A collective permutation of the message for each neighbour.

    Example:
        >>> from jaxmethods.shard import dense, graph
        >>> ring = graph_exchange(dense(), "i", graph("ring", 3))
        >>> gradients = jnp.array([0.0, 2.0, 8.0])  # of three workers
        >>> state = jax.vmap(ring.init)(gradients)
        >>> jax.vmap(ring.update, axis_name="i")(gradients, state)[0].tolist()
        [4.0, 1.0, 5.0]

    References:
        Kadav and Kruus 2016, arXiv:1612.08608 (the gradient exchange over graphs).
    """
    check_codec(codec)
    check_axis_name(axis_name)
    senders, used = graph.permutations
    if graph.cycles or not used.all():
        raise ValueError(
            f"{graph} {'cycles' if graph.cycles else 'has unequal degrees'}; wanted "
            "one degree in every round: graph('exp2', num_workers)."
        )

    def init(params: Any) -> Any:
        return each_its_own(codec.init(params), axis_name)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        check_workers(graph, axis_name, "update")
        message, state = codec.encode(state, updates)
        total = codec.decode(message)
        for column in senders.T:
            pairs = [(int(sender), worker) for worker, sender in enumerate(column)]
            received = jax.lax.ppermute(message, axis_name, pairs)
            total = jax.tree.map(jnp.add, total, codec.decode(received))
        mean = jax.tree.map(lambda s: s / (1 + senders.shape[1]), total)
        return in_dtypes_of(mean, updates), each_its_own(state, axis_name)

    return optax.GradientTransformation(init, update)
