"""How many rounds a graph of workers takes to agree, promised and taken."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods import shard

from .workers import AXIS

REDUCED, LENGTH = 1e-3, 8  # of the disagreement; values of a worker


def make_graph(name: str, workers: int) -> shard.Graph:
    """A graph by name; random ones are always the same."""
    key = jax.random.key(0) if name == "random_regular" else None
    return shard.graph(name, workers, key=key)


def rounds_by_gap(graph: shard.Graph) -> int:
    """Rounds after which the gap promises a thousandth of the disagreement.

    Of a graph that cycles whole cycles.
    """
    left = 1 - shard.spectral_gap(graph)
    period = graph.send.shape[1] if graph.cycles else 1
    if left < REDUCED:
        return period
    return period * math.ceil(math.log(REDUCED) / math.log(left))


def starts(graph: shard.Graph) -> np.ndarray:
    """Values (workers, 2 LENGTH): random ones, then those that mix worst."""
    product = np.eye(graph.num_workers)
    for step in range(graph.send.shape[1] if graph.cycles else 1):
        product = shard.mixing_matrix(graph, step) @ product
    # The first right singular vector is the mean.
    worst = np.linalg.svd(product)[2][1]
    drawn = np.random.default_rng(0).standard_normal((graph.num_workers, LENGTH))
    return np.hstack([drawn, np.repeat(worst[:, None], LENGTH, 1)])


def by_matrix(graph: shard.Graph, values: np.ndarray, rounds: int) -> np.ndarray:
    """W^t x for t = 0, 1, ..., (rounds + 1, workers, ...)."""
    found = [values]
    for step in range(rounds):
        found.append(shard.mixing_matrix(graph, step) @ found[-1])
    return np.stack(found)


def by_devices(graph: shard.Graph, values: np.ndarray, rounds: int) -> np.ndarray:
    """The same by `stochastic_reduce`, each worker a device."""
    mesh = Mesh(np.array(jax.devices()[: graph.num_workers]), (AXIS,))

    def own(x: jax.Array) -> jax.Array:
        def one(x: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = shard.stochastic_reduce(x, AXIS, graph, step)
            return x, x

        return jax.lax.scan(one, x, jnp.arange(rounds))[1]

    over = jax.shard_map(own, mesh=mesh, in_specs=P(AXIS), out_specs=P(None, AXIS))
    found = np.asarray(jax.jit(over)(jnp.asarray(values, jnp.float32)))
    return np.concatenate([values[None], found])


def disagreement(path: np.ndarray) -> np.ndarray:
    """Of each round, over that of round 0."""
    off = np.sqrt(((path - path.mean(1, keepdims=True)) ** 2).sum((1, 2)))
    return off / off[0]


def rounds_taken(path: np.ndarray) -> int | None:
    """The first round with a thousandth of the disagreement of round 0."""
    below = np.flatnonzero(disagreement(path) <= REDUCED)
    return int(below[0]) if len(below) else None


def consensus(graph: shard.Graph, *, on_devices: bool) -> dict[str, Any]:
    """What the gap promises, and the rounds that it takes."""
    promised = rounds_by_gap(graph)
    rounds, values = promised + 2, starts(graph)
    path = wanted = by_matrix(graph, values, rounds)
    if on_devices:
        path = by_devices(graph, values, rounds)
    degree = 1 if graph.cycles else graph.send.shape[1]
    return {
        "workers": graph.num_workers,
        "gap": shard.spectral_gap(graph),
        "degree": degree,
        "messages": degree * graph.num_workers,
        "promised": promised,
        "random": rounds_taken(path[..., :LENGTH]),
        "worst": rounds_taken(path[..., LENGTH:]),
        "decay": disagreement(path[..., :LENGTH]).tolist() if on_devices else None,
        "off_matrix": float(np.abs(path - wanted).max()) if on_devices else None,
        # What a ring all-reduce sends is of the exact mean.
        "all_reduce": 2 * (graph.num_workers - 1) / graph.num_workers,
    }
