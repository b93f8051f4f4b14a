"""What workers owe, handed to another number of workers."""

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_integer, describe, is_concrete
from ._adacomp import AdaCompState
from ._compose import FeedbackState
from ._selectors import ThresholdMemory
from ._two_phase import TwoPhaseState

Move = Callable[[jax.Array], jax.Array]


def resize(state: Any, num_workers: int, params: Any = None) -> Any:
    """The state of N workers as one of M workers, no gradient lost.

    An update is the mean over workers of what they sent, so a residue r_i of one of N
    workers owes r_i / N to the parameters, and one of M owes r_j / M: handing residues
    over as they are would pay N / M times what is owed. New residues are therefore
    means, of the workers that lie where the new one does,

        r'_j = M sum_i |[i/N, (i+1)/N) ∩ [j/M, (j+1)/M)| r_i,

    which keeps (1/M) sum r' = (1/N) sum r up to rounding: if N is a multiple of M, the
    means of groups; if M is one of N, copies, exact. Updates applied and what is owed
    still add up to the sum of all mean gradients. In `TwoPhaseState` the parts of the
    mean move to their new owners as they are: each is owed once, whoever holds it.

    Else, where N is not M: counters of the last message become 0; a threshold is that
    of the worker at floor(j N / M) and is renewed in the next step, from which its life
    counts; all other leaves, such as Adam's moments, must be alike on all workers, and
    are that worker's. With M = N the state returns unchanged.

    Checkpoints: save the stacked state, restore it onto the new devices with all N
    rows, and resize there, under `jit` with `out_shardings` where it is large. Of a
    `hybrid_training` state the first axis, the groups, changes.

    Args:
        state: A codec's or an exchange's state, or any tree that holds some, such as
            that of `optax.chain`, each leaf with a leading axis of N workers. Where
            only the exchange's part is stacked, give that part.
        num_workers: M, at least 1.
        params: A tree like the gradients of one worker, of which shapes are read.
            Needed for `TwoPhaseState`, whose parts do not tell where the gradients end;
            for others checked if given.

    Returns:
        A tree like `state`, with a leading axis of M.

    Raises:
        TypeError: num_workers is no int.
        ValueError: num_workers below 1; leaves without one leading axis; residues
            unlike `params`; another leaf that differs between workers (not seen under
            `jit`).

    Example:
        >>> from jaxmethods.shard import adacomp
        >>> four = jax.vmap(adacomp().init)(jnp.zeros((4, 2)))
        >>> four = four._replace(residue=jnp.arange(8.0).reshape(4, 2))
        >>> resize(four, 2).residue.tolist()  # means of pairs
        [[1.0, 2.0], [5.0, 6.0]]

    References:
        Chen et al. 2017, arXiv:1712.02679 (residues of the workers).
    """
    num_workers = check_integer(num_workers, "num_workers", 1)
    old = _num_workers(state)
    kept = _kept(old, num_workers)

    def move(path: Any, node: Any) -> Any:
        where = "state" + jax.tree_util.keystr(path)
        if isinstance(node, TwoPhaseState):
            size = _entries(node, params, old, where)
            new = _two_phase(node, old, num_workers, size, where)
        elif _owes(node):
            if params is not None:
                _check_like(_owed(node), params, old, where)
            new = _of_codec(node, _share(old, num_workers), kept, where)
        else:
            if old != num_workers:
                _check_alike(node, where)
            new = kept(node)
        return node if old == num_workers else new

    return jax.tree_util.tree_map_with_path(
        move, state, is_leaf=lambda x: isinstance(x, TwoPhaseState) or _owes(x)
    )


def _owes(node: Any) -> bool:
    """Whether this is a codec's state: what has a residue or an error."""
    structured = is_dataclass(node) or hasattr(node, "_fields")
    return structured and (hasattr(node, "residue") or hasattr(node, "error"))


def _owed(node: Any) -> Any:
    return node.residue if hasattr(node, "residue") else node.error


def _num_workers(state: Any) -> int:
    """The length of the leading axis of all leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    if not leaves:
        return 0
    first, old = None, 0
    for path, leaf in leaves:
        where = "state" + jax.tree_util.keystr(path)
        if not np.ndim(leaf) or not np.shape(leaf)[0]:
            raise ValueError(
                f"{where} is {describe(leaf)}; wanted a leading axis of workers in "
                "every leaf: stack states as jax.vmap(optimizer.init) does, or as "
                f"shard_map with out_specs of the axis{_part(state)}."
            )
        if first is None:
            first, old = where, np.shape(leaf)[0]
        if np.shape(leaf)[0] != old:
            raise ValueError(
                f"{where} is {describe(leaf)} and {first} has {old} workers; wanted as "
                f"many in every leaf, on its first axis{_part(state)}."
            )
    return old


def _part(state: Any) -> str:
    """How to resize the state of a chain of which only the exchange's is stacked."""
    is_leaf = lambda x: isinstance(x, TwoPhaseState) or _owes(x)  # noqa: E731
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_leaf):
        if path and is_leaf(node):
            where = "state" + jax.tree_util.keystr(path)
            return (
                f"; or, if only {where} is stacked, call resize({where}, num_workers)"
            )
    return ""


def _share(old: int, new: int) -> Move:
    """Means over the workers that lie where the new one does."""
    i, j = np.arange(old), np.arange(new)[:, None]
    low, high = np.maximum(i * new, j * old), np.minimum((i + 1) * new, (j + 1) * old)
    weights = np.maximum(high - low, 0) / old  # rows sum to 1, columns to new / old

    def share(x: jax.Array) -> jax.Array:
        highest = jax.lax.Precision.HIGHEST  # a copy is a copy
        return jnp.tensordot(jnp.asarray(weights, x.dtype), x, 1, precision=highest)

    return share


def _kept(old: int, new: int, axes: int = 1) -> Move:
    """For each new worker, the old one that lies where it begins."""
    rows = np.arange(new) * old // new

    def kept(x: jax.Array) -> jax.Array:
        for axis in range(axes):
            x = x[(slice(None),) * axis + (rows,)]
        return x

    return kept


def _of_codec(node: Any, share: Move, kept: Move, where: str) -> Any:
    """A codec's state with its residues shared out and the rest kept."""

    def none_yet(x: jax.Array) -> jax.Array:
        return jnp.zeros_like(kept(x))

    if isinstance(node, AdaCompState):
        return AdaCompState(
            jax.tree.map(share, node.residue),
            none_yet(node.full_bins),
            none_yet(node.skipped),
        )
    if isinstance(node, FeedbackState):
        return FeedbackState(
            jax.tree.map(share, node.error),
            _of_selector(node.memory, kept),
            none_yet(node.held_back),
            none_yet(node.skipped),
        )
    name = "residue" if hasattr(node, "residue") else "error"
    names = getattr(node, "_fields", None) or list(node.__dataclass_fields__)
    new: dict[str, Any] = {}
    for field in names:
        value = getattr(node, field)
        if field != name:
            _check_alike(value, f"{where}.{field}")
        new[field] = jax.tree.map(share if field == name else kept, value)
    return node._replace(**new) if hasattr(node, "_replace") else replace(node, **new)


def _of_selector(memory: Any, kept: Move) -> Any:
    def due(node: Any) -> Any:
        if isinstance(node, ThresholdMemory):
            return ThresholdMemory(
                kept(node.threshold), jnp.zeros_like(kept(node.step))
            )
        return kept(node)

    return jax.tree.map(due, memory, is_leaf=lambda x: isinstance(x, ThresholdMemory))


def _two_phase(
    node: TwoPhaseState, old: int, new: int, size: int, where: str
) -> TwoPhaseState:
    """Parts of `size` entries in all, cut anew."""
    width = max(1, -(-size // new))
    share = _share(old, new)

    def cut(x: jax.Array, rows: int) -> jax.Array:
        whole = x.reshape(rows, -1)[:, :size]
        return jnp.pad(whole, ((0, 0), (0, new * width - whole.shape[1])))

    def parts(x: jax.Array) -> jax.Array:
        return share(cut(x, old)).reshape(new, new, width)

    def mean(x: jax.Array) -> jax.Array:
        return cut(x, 1).reshape(new, width)

    return TwoPhaseState(
        _of_codec(node.parts, parts, _kept(old, new, 2), f"{where}.parts"),
        _of_codec(node.mean, mean, _kept(old, new), f"{where}.mean"),
    )


def _entries(node: TwoPhaseState, params: Any, old: int, where: str) -> int:
    """The entries of the gradients, of which TwoPhaseState has the parts."""
    if params is None:
        raise ValueError(
            f"{where} is a TwoPhaseState and params is None; wanted a tree like the "
            "gradients, to know where their last part ends: resize(state, "
            "num_workers, params)."
        )
    size = sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(params))
    width = max(1, -(-size // old))
    if not (_owes(node.parts) and _owes(node.mean)):
        raise ValueError(
            f"{where}.parts is a {type(node.parts).__name__}; wanted a codec's state, "
            "with a residue or an error."
        )
    for name, wanted in {"parts": (old, old, width), "mean": (old, width)}.items():
        for leaf in jax.tree.leaves(_owed(getattr(node, name))):
            if np.shape(leaf) != wanted:
                raise ValueError(
                    f"{where}.{name} owes {describe(leaf)}, params have {size} "
                    f"entries; wanted float32{list(wanted)} of {old} workers: pass a "
                    "tree like the gradients of one worker."
                )
    return size


def _check_like(owed: Any, params: Any, old: int, where: str) -> None:
    """Raises unless residues are like params, with a leading axis."""
    if owed is None:
        return
    got, wanted = jax.tree.structure(owed), jax.tree.structure(params)
    if got != wanted:
        raise ValueError(
            f"{where} holds residues of the tree {got}, params are {wanted}; wanted "
            "the same: pass a tree like the gradients of one worker."
        )
    leaves = jax.tree_util.tree_leaves_with_path(owed)
    for (path, leaf), param in zip(leaves, jax.tree.leaves(params), strict=True):
        if np.shape(leaf) != (old, *np.shape(param)):
            raise ValueError(
                f"the residue {where}: {jax.tree_util.keystr(path) or 'leaf'} is "
                f"{describe(leaf)} of {old} workers, params have {describe(param)} "
                f"there; wanted {[old, *np.shape(param)]}."
            )


def _check_alike(tree: Any, where: str) -> None:
    """Raises where workers hold different bits in what only one of them passes on."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_concrete(leaf) or not np.size(leaf):
            continue
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        rows = np.ascontiguousarray(leaf).reshape(len(leaf), -1).view(np.uint8)
        if (rows != rows[:1]).any():
            raise ValueError(
                f"{where}{jax.tree_util.keystr(path)} is {describe(leaf)} and differs "
                "between workers; wanted the same on all, or a state with a residue or "
                "an error: reduce it to what all should have before resize."
            )
