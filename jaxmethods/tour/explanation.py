"""Which training labels are wrong, and which digits led to the worst mistakes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import influence
from ..audit.compiling import compiled
from ..audit.model import Apply, example_loss
from ..data import Images

_PLANTED_SHARE = 0.05
_INSPECTED = np.linspace(0, 1, 51)
_MISTAKES = 4
_OPPONENTS = 6


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
    random = np.random.default_rng((seed, 1))
    total = len(train.labels)
    count = max(1, round(_PLANTED_SHARE * total))
    which = random.permutation(total)[:count]
    shift = random.integers(1, 10, count)
    labels = train.labels.copy()
    labels[which] = (labels[which] + shift) % 10
    wrong = np.zeros(total, bool)
    wrong[which] = True
    return Planted(Images(train.images, labels), wrong)


def label_error_finder(
    apply: Apply, checkpoints: Any, planted: Planted
) -> Callable[[Any, list[float]], LabelErrors]:
    """Ranks training examples by self-influence over checkpoints.

    Args:
        apply: `apply(params, image) -> logits` of one image.
        checkpoints: Stacked parameters of the shapes to come.
        planted: What to rank.

    Returns:
        `find(checkpoints, learning_rates) -> LabelErrors`, compiled already.
    """
    loss = partial(example_loss, apply)
    examples = tuple(planted.train)
    rates = np.zeros(len(jax.tree.leaves(checkpoints)[0]), np.float32)
    scores = compiled(influence.self_influence(loss), checkpoints, rates, examples)
    losses = compiled(partial(_sum_of_losses, loss), checkpoints, examples)

    def find(checkpoints: Any, learning_rates: list[float]) -> LabelErrors:
        rates = np.asarray(learning_rates, np.float32)
        suspicion = np.asarray(scores(checkpoints, rates, examples))
        ranking = np.argsort(-suspicion, kind="stable")
        by_loss = np.argsort(-np.asarray(losses(checkpoints, examples)), kind="stable")
        top = planted.wrong[ranking][: round(0.2 * len(ranking))]
        return LabelErrors(
            ranking,
            _found(planted.wrong[ranking]),
            _found(planted.wrong[by_loss]),
            _INSPECTED.tolist(),
            float(top.sum() / planted.wrong.sum()),
        )

    return find


def _sum_of_losses(loss: Any, checkpoints: Any, examples: Any) -> jax.Array:
    def at(params: Any) -> jax.Array:
        return jax.lax.map(lambda e: loss(params, e), examples, batch_size=256)

    return jax.lax.map(at, checkpoints).sum(0)


def _found(wrong: np.ndarray) -> list[float]:
    reached = np.concatenate([[0], np.cumsum(wrong)]) / wrong.sum()
    return reached[np.round(_INSPECTED * len(wrong)).astype(int)].tolist()


def mistake_explainer(
    apply: Apply, checkpoints: Any, train: Images, test: Images
) -> Callable[[Any, list[float]], list[Mistake]]:
    """The misclassified test examples of the highest loss, and who raised it most.

    Args:
        apply: `apply(params, image) -> logits` of one image.
        checkpoints: Stacked parameters of the shapes to come.
        train: Where the culprits are looked for.
        test: Where the mistakes are looked for.

    Returns:
        `explain(checkpoints, learning_rates)`, compiled already: at most four mistakes.
    """
    loss = partial(example_loss, apply)
    pool, asked = tuple(train), tuple(test)

    def answers(params: Any, examples: Any) -> tuple[jax.Array, jax.Array]:
        def one(example: Any) -> tuple[jax.Array, jax.Array]:
            return loss(params, example), jnp.argmax(apply(params, example[0]))

        return jax.lax.map(one, examples, batch_size=256)

    def queries(rows: Any) -> Any:
        return jax.tree.map(lambda a: a[rows], asked)

    last = jax.tree.map(lambda leaf: leaf[-1], checkpoints)
    rates = np.zeros(len(jax.tree.leaves(checkpoints)[0]), np.float32)
    answer = compiled(answers, last, asked)
    first = queries(np.zeros(_MISTAKES, int))
    influences = compiled(influence.tracin(loss), checkpoints, rates, pool, first)

    def explain(checkpoints: Any, learning_rates: list[float]) -> list[Mistake]:
        last = jax.tree.map(lambda leaf: leaf[-1], checkpoints)
        losses, predicted = map(np.asarray, answer(last, asked))
        losses = np.where(predicted == test.labels, -np.inf, losses)
        order = np.argsort(-losses)[:_MISTAKES]
        worst = [int(i) for i in order if np.isfinite(losses[i])]
        if not worst:
            return []
        rates = np.asarray(learning_rates, np.float32)
        # The compiled program takes as many queries as there may be mistakes.
        rows = np.resize(worst, _MISTAKES)
        scores = np.asarray(influences(checkpoints, rates, pool, queries(rows)))
        mistakes = []
        for index, row in zip(worst, scores, strict=False):
            culprits = np.argsort(row, kind="stable")[:_OPPONENTS]
            mistakes.append(
                Mistake(
                    index,
                    int(predicted[index]),
                    culprits.tolist(),
                    row[culprits].tolist(),
                )
            )
        return mistakes

    return explain
