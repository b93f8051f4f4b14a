"""Which labels look wrong: examples that a model could only learn by heart."""

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import influence
from ..core import check_integer, leaf_paths
from .levels import pieces
from .model import Apply, check_labels, example_loss, read_model
from .progress import progress as bar
from .trained import is_trained


class Suspect(NamedTuple):
    """An example whose label may be wrong.

    Attributes:
        index: Its number.
        label: What it is labelled.
        predicted: What the model takes it for.
        self_influence: How much its own gradient steps lower its own loss.
        loss: In nats.
    """

    index: int
    label: int
    predicted: int
    self_influence: float
    loss: float


class Labels(NamedTuple):
    """A ranking of examples by self-influence.

    Attributes:
        ranking: Their numbers, most suspicious first.
        scores: Their self-influence, in order of number.
        suspects: The first of the ranking.
        num_checkpoints: Over how many checkpoints the scores are sums.
    """

    ranking: list[int]
    scores: list[float]
    suspects: list[Suspect]
    num_checkpoints: int


def labels(
    apply: Apply,
    params: Any,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    checkpoints: Sequence[Any] | None = None,
    num_suspects: int = 20,
    batched: bool | None = None,
    chunk: int = 64,
    progress: bool = False,
) -> Labels:
    """Ranks examples by `influence.self_influence`: wrong labels come first.

    The score is the squared norm of the gradient of an example's cross entropy, summed
    over checkpoints. On the examples that a model was trained on, several checkpoints
    find more than the last alone, at which wrong labels may be learned. Only what is
    trained counts: neither running statistics of flax (linen or nnx) nor keys do.

    Args:
        apply: `apply(params, x) -> logits`, of one input or of a batch.
        params: A pytree of arrays.
        inputs: (n, ...) floating.
        labels: (n,) integers.
        checkpoints: Parameters in the course of training; None: `params` alone.
        num_suspects: How many are described.
        batched: Whether `apply` takes a batch; None: found out.
        chunk: How many examples are scored at once.
        progress: Whether to show on standard error how far it is.

    Returns:
        `Labels`.

    Raises:
        TypeError, ValueError: As `accuracy`; checkpoints unlike `params`; gradients
            that are not finite.

    Example:
        >>> w = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        >>> x = jnp.array([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2]])
        >>> apply = lambda params, x: x @ params
        >>> labels_of_x = jnp.array([0, 1, 1])  # the last is wrong
        >>> labels(apply, w, x, labels_of_x).suspects[0].index
        2

    References:
        Pruthi, Liu, Kale, Sundararajan 2020, arXiv:2002.08484, section 4.1.
    """
    model = read_model(apply, params, inputs, batched=batched)
    count = len(model.inputs)
    given = check_labels(labels, count, model.num_classes)
    kept = [model.params] if checkpoints is None else list(checkpoints)
    stacked = _stacked(model.params, kept)
    loss = partial(example_loss, model.apply)
    # Running statistics have no gradient steps.
    kept_paths = zip(leaf_paths(model.params), is_trained(model.params), strict=True)
    where = [path for path, trained in kept_paths if trained]
    own = influence.self_influence(loss, where=where)

    def read(inputs: Any, labels: Any, stacked: Any, params: Any) -> Any:
        scores = own(stacked, jnp.ones(len(kept)), (inputs, labels))
        logits = jax.vmap(lambda x: model.apply(params, x))(inputs)
        losses = jax.vmap(lambda *e: loss(params, e))(inputs, labels)
        return scores, losses, jnp.argmax(logits, -1)

    program = jax.jit(read)
    chunk = min(check_integer(chunk, "chunk", 1), count)
    steps = list(pieces(np.arange(count), chunk))
    found = []
    for rows, real in bar(steps, "self-influence", len(steps)) if progress else steps:
        some = program(model.inputs[rows], given[rows], stacked, model.params)
        found.append([np.asarray(part)[:real] for part in some])
    scores, losses, predicted = map(np.concatenate, zip(*found, strict=True))
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))[:10].tolist()
        raise ValueError(
            f"the gradients of examples {bad} are not finite; wanted finite losses: "
            "look for overflow in the model."
        )
    ranking = np.argsort(-scores, kind="stable")
    suspects = [
        Suspect(
            int(i), int(given[i]), int(predicted[i]), float(scores[i]), float(losses[i])
        )
        for i in ranking[: check_integer(num_suspects, "num_suspects", 0)]
    ]
    return Labels(ranking.tolist(), scores.tolist(), suspects, len(kept))


def _stacked(params: Any, checkpoints: Sequence[Any]) -> Any:
    """Checkpoints as one tree, whose leaves have a leading axis."""
    if not checkpoints:
        raise ValueError(
            "checkpoints is empty; wanted one or more, or None for params."
        )

    wanted = _shapes(params)
    for number, tree in enumerate(checkpoints):
        unlike = [
            pair for pair in zip_longest(_shapes(tree), wanted) if len({*pair}) > 1
        ]
        if unlike:
            got, want = unlike[0]
            raise ValueError(
                f"checkpoint {number} has {got} where params have {want}; wanted "
                "checkpoints of one model: leave out those of another."
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *checkpoints)


def _shapes(tree: Any) -> list[str]:
    pairs = zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)
    return [f"{'/'.join(map(str, path))} {jnp.shape(leaf)}" for path, leaf in pairs]
