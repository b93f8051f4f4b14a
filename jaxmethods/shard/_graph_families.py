"""The graphs that decentralised training uses, by name."""

import math
from typing import Any

import jax
import numpy as np

from ..core import check_choice, check_integer, check_key, describe, is_concrete
from ._graphs import Graph
from ._permutations import complete_matching

_NAMES = (
    *("ring", "chord", "halton", "root", "exp2", "complete"),
    *("random_regular", "one_peer"),
)


def graph(
    name: str, num_workers: int, *, degree: int | None = None, key: Any = None
) -> Graph:
    """A graph of workers by name: every worker sends to `degree` others.

    Worker i sends to i + o modulo N for every offset o. With lg = floor(log2 N):

    - "ring": 1; "complete": 1, 2, ..., N - 1;
    - "exp2": 1, 2, 4, ... below N: mixes well for any N, the one to begin with;
    - "chord": N // 2, N // 4, ..., lg of them; "root": 1 and round(sqrt N);
    - "halton": floor(N h) for lg numbers h of van der Corput's sequence, the default
      of MALT-2. Its gap falls below that of "exp2" from N = 16 on.

    "random_regular" lays a random cycle through all workers, which keeps it connected,
    and then random permutations without edges that are there. "one_peer" sends to one
    other worker a round, at offset `2^(t mod ceil(log2 N))` in round t: a power of two
    of workers have the exact mean after log2 N rounds, other numbers never.

    Bytes a worker sends in a round: degree times those of the model, with "one_peer"
    once; a ring all-reduce sends at most twice. Only degree 1 sends less than that.

    Args:
        name: One of the eight.
        num_workers: The number N, at least 1.
        degree: 1..N-1: the first `degree` of the offsets; None: all of them, and for
            "random_regular" ceil(log2 N).
        key: A typed key, for "random_regular" only, the same on all workers.

    Returns:
        A `Graph`, its `send` int32 (N, degree).

    Raises:
        ValueError: An unknown name, a degree the graph does not have, no key where one
            is needed, or offsets that leave parts which never mix.

    Example:
        >>> graph("exp2", 8)
        Graph(8 workers, 0 sends to [1, 2, 4])
        >>> graph("halton", 16).send[0].tolist()
        [1, 9, 5, 13]

    References:
        Kadav and Kruus 2016, arXiv:1612.08608; chord and halton as in their MALT-2.
        Ying et al. 2021, arXiv:2110.13363 (exponential graphs, one peer).
    """
    check_choice(name, _NAMES, "name")
    size = check_integer(num_workers, "num_workers", 1)
    _check_degree(degree, size)
    if name == "random_regular":
        return Graph(_random_columns(size, degree, key))
    if name == "one_peer" and degree not in (None, 1):
        raise ValueError(f"degree is {degree}; one_peer has 1 in every round.")
    offsets = _OFFSETS[name](size)
    if name != "one_peer":
        offsets = _first(offsets, degree, name, size)
    _check_mixing(offsets, name, size)
    send = (np.arange(size)[:, None] + np.array(offsets, np.int64)[None]) % size
    return Graph(send, cycles=name == "one_peer" and size > 1)


def _halton(size: int) -> list[int]:
    lg = int(math.log2(size))
    found: list[int] = []
    first = 2**lg // 2 - 1
    for place in range(size):
        index = (first + place) % size + 1
        digits = f"{index:b}"[::-1]  # van der Corput: the digits behind the point
        offset = size * int(digits, 2) // 2 ** len(digits)
        if offset and offset not in found:
            found.append(offset)
    return found


_OFFSETS = {
    "ring": lambda n: [1] if n > 1 else [],
    "chord": lambda n: [n >> k for k in range(1, n.bit_length())],
    "halton": _halton,
    "root": lambda n: sorted({1, round(math.sqrt(n))} - {n}),
    "exp2": lambda n: [2**k for k in range((n - 1).bit_length())],
    "complete": lambda n: list(range(1, n)),
    "one_peer": lambda n: [2**k for k in range((n - 1).bit_length())],
}


def _check_degree(degree: int | None, size: int) -> None:
    if degree is not None and size == 1:
        raise ValueError(
            f"degree is {degree} of 1 worker, which sends to nobody; leave it out."
        )
    if degree is not None:
        check_integer(degree, "degree", 1, size - 1)


def _first(offsets: list[int], degree: int | None, name: str, size: int) -> list[int]:
    if degree is None:
        # The sequence goes on, but MALT-2 and the paper stop at floor(log2 N).
        return offsets[: int(math.log2(size))] if name == "halton" else offsets
    if degree > len(offsets):
        raise ValueError(
            f"degree is {degree} and {name} of {size} workers has offsets {offsets}; "
            f"wanted at most {len(offsets)}, or another graph: complete has "
            f"{size - 1}."
        )
    return offsets[:degree]


def _check_mixing(offsets: list[int], name: str, size: int) -> None:
    parts = math.gcd(size, *offsets)
    if parts > 1:
        raise ValueError(
            f"{name} of {size} workers with offsets {offsets} is disconnected: {parts} "
            f"parts of {size // parts} workers never mix; wanted a common divisor of "
            "1: pass another degree, or take exp2."
        )


def _random_columns(size: int, degree: int | None, key: Any) -> np.ndarray:
    """A random cycle and random permutations, all disjoint, (N, degree)."""
    if key is None:
        raise ValueError(
            "key is None; random_regular is drawn: pass key=jax.random.key(0), the "
            "same on all workers."
        )
    check_key(key)
    if not is_concrete(key):
        raise TypeError(
            f"key is {describe(key)}, traced; wanted values: make the graph outside "
            "jit."
        )
    if degree is None:
        degree = (size - 1).bit_length()
    words = np.asarray(jax.random.bits(key, (degree, size), "uint32"))
    orders = np.argsort(words, axis=1, kind="stable")
    allowed = ~np.eye(size, dtype=bool)
    send = np.empty((size, degree), np.int64)
    for column, order in enumerate(orders):
        receivers = order.copy()
        if column == 0:
            receivers[order] = np.roll(order, -1)
        # Edges that are there already are given up, and others found for their ends.
        receivers[~allowed[np.arange(size), receivers]] = -1
        send[:, column] = complete_matching(allowed, receivers)
        allowed[np.arange(size), send[:, column]] = False
    return send
