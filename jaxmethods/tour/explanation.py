"""Which training labels are wrong, and which digits led to the worst mistakes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import influence
from ..data import Images
from .objective import Apply, example_loss

_PLANTED_SHARE = 0.05
_INSPECTED = np.linspace(0, 1, 51)


class Planted(NamedTuple):
    """Training data with some labels replaced; `wrong` says which."""

    train: Images
    wrong: np.ndarray


class LabelErrors(NamedTuple):
    """How a ranking by self-influence finds the planted label errors.

    Attributes:
        ranking: Indices of the training examples, most suspicious first.
        found: Share of the errors found at each share of `inspected`.
        found_by_loss: The same where the sum of the losses ranks, the strong baseline.
        inspected: Shares of the ranked examples.
        found_in_top_fifth: Share of the errors among the first 20 %.
    """

    ranking: np.ndarray
    found: list[float]
    found_by_loss: list[float]
    inspected: list[float]
    found_in_top_fifth: float


class Mistake(NamedTuple):
    """A misclassified test example and the training examples that raised its loss."""

    test_index: int
    predicted: int
    opponents: list[int]
    scores: list[float]


def plant_errors(train: Images, seed: int) -> Planted:
    """Replaces one label in twenty by another class, drawn uniformly."""
    random = np.random.default_rng(seed)
    total = len(train.labels)
    count = max(1, round(_PLANTED_SHARE * total))
    which = random.permutation(total)[:count]
    shift = random.integers(1, 10, count)
    labels = train.labels.copy()
    labels[which] = (labels[which] + shift) % 10
    wrong = np.zeros(total, bool)
    wrong[which] = True
    return Planted(Images(train.images, labels), wrong)


def find_label_errors(
    apply: Apply, checkpoints: Any, learning_rates: list[float], planted: Planted
) -> LabelErrors:
    """Ranks training examples by self-influence over the checkpoints."""
    loss = partial(example_loss, apply)
    rates = jnp.asarray(learning_rates)
    examples = jax.tree.map(jnp.asarray, tuple(planted.train))
    scores = jax.jit(influence.self_influence(loss))(checkpoints, rates, examples)
    losses = jax.jit(lambda c: _sum_of_losses(loss, c, examples))(checkpoints)
    ranking = np.argsort(-np.asarray(scores), kind="stable")
    by_loss = np.argsort(-np.asarray(losses), kind="stable")
    found = _found(planted.wrong[ranking])
    top = planted.wrong[ranking][: round(0.2 * len(ranking))]
    return LabelErrors(
        ranking,
        found,
        _found(planted.wrong[by_loss]),
        _INSPECTED.tolist(),
        float(top.sum() / planted.wrong.sum()),
    )


def _sum_of_losses(loss: Any, checkpoints: Any, examples: Any) -> jax.Array:
    def at(params: Any) -> jax.Array:
        return jax.lax.map(lambda e: loss(params, e), examples, batch_size=256)

    return jax.lax.map(at, checkpoints).sum(0)


def _found(wrong: np.ndarray) -> list[float]:
    reached = np.concatenate([[0], np.cumsum(wrong)]) / wrong.sum()
    return reached[np.round(_INSPECTED * len(wrong)).astype(int)].tolist()


def explain_mistakes(
    apply: Apply,
    checkpoints: Any,
    learning_rates: list[float],
    train: Images,
    test: Images,
    *,
    count: int = 4,
    opponents: int = 6,
) -> list[Mistake]:
    """The misclassified test examples of the highest loss, and who raised it most."""
    loss = partial(example_loss, apply)
    last = jax.tree.map(lambda leaf: leaf[-1], checkpoints)
    examples = jax.tree.map(jnp.asarray, tuple(test))

    @jax.jit
    def answers(params: Any) -> tuple[jax.Array, jax.Array]:
        def one(example: Any) -> tuple[jax.Array, jax.Array]:
            return loss(params, example), jnp.argmax(apply(params, example[0]))

        return jax.lax.map(one, examples, batch_size=256)

    losses, predicted = map(np.asarray, answers(last))
    losses = np.where(predicted == test.labels, -np.inf, losses)
    worst = [int(i) for i in np.argsort(-losses)[:count] if np.isfinite(losses[i])]
    if not worst:
        return []
    # Always `count` queries, so that one compiled program serves any number found.
    rows = np.resize(worst, count)
    queries = jax.tree.map(lambda a: a[rows], examples)
    pool = jax.tree.map(jnp.asarray, tuple(train))
    scores = jax.jit(influence.tracin(loss))(
        checkpoints, jnp.asarray(learning_rates), pool, queries
    )
    mistakes = []
    for index, row in zip(worst, np.asarray(scores), strict=False):
        order = np.argsort(row, kind="stable")[:opponents]
        mistakes.append(
            Mistake(index, int(predicted[index]), order.tolist(), row[order].tolist())
        )
    return mistakes
