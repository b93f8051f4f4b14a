"""Embeddings of training examples on disk: written once, asked many times."""

from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_integer
from ._checkpoints import check_rates
from ._finite import check_finite
from ._methods import Method
from ._projecting import keyed
from ._projection import embedders
from ._run import Run, follow
from ._shards import Shards, begin_shards, check_same, load_shards
from ._store import Store, describe_layout, describe_model, describe_sketch, fingerprint
from ._streams import Batch
from ._task import Loss, Reading, Where
from ._walk import Step, walk


class Datastore(NamedTuple):
    """How embeddings are written and read.

    Attributes:
        build: `build(folder, checkpoints, learning_rates, train, *, visits=None,
            precondition=None) -> Store` writes the embeddings of the training examples
            to a folder; with `project` it is `build(key, folder, ...)`. All but the
            folder are as for `tracin`. Called again with the same arguments it goes on
            where it was broken off, and writes nothing where all is there.
        open: `open(folder, checkpoints, *, precondition=None) -> Store` opens what was
            built; each checkpoint is read once, to see that it is the same.
    """

    build: Callable[..., Store]
    open: Callable[..., Store]


def datastore(
    loss: Loss,
    *,
    where: Where = None,
    project: int | None = None,
    progress: bool | None = None,
) -> Datastore:
    r"""Writes gradients of training examples to disk, to score any test example later.

    An example's embedding is its gradient at each checkpoint, times the root of the
    learning rate, all in a row; inner products of embeddings are the scores of
    `tracin`. With `project` they are of sketched gradients, `project` numbers a
    checkpoint; without it they are exact, as long as all parameters together, which is
    for few parameters only (see `where`). They are written to a folder of shards, a
    block of training examples each, and read a chunk at a time: neither the examples
    nor the embeddings are ever in memory as a whole.

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.
        where: Which parameters count, as for `tracin`.
        project: How many numbers are kept of an example at a checkpoint, as for
            `tracin`; None: all.
        progress: Whether to show how far building is, as for `tracin`.

    Returns:
        `Datastore(build, open)`, functions to be called outside of jit; both return a
        `Store`.

    Raises:
        ValueError: As `tracin`; the folder holds what was built with another key, other
            parameters, rates, examples or options, which the message names; a file is
            damaged, or building was broken off.
        FileNotFoundError: A file is missing.
        TypeError: As `tracin`.

    Complexity: one forward and one backward pass a training example and checkpoint,
    once; a query reads K `project` numbers a training example, with 2 K `project` flops
    a pair.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> loss = lambda params, example: (params["w"] @ example[0] - example[1]) ** 2
        >>> examples = jnp.eye(2), jnp.asarray([1.0, 3.0])
        >>> build, _ = datastore(loss)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = build(folder, [{"w": jnp.zeros(2)}], [0.5], examples)
        ...     store.scores(examples).round(4).tolist()
        [[2.0, 0.0], [0.0, 18.0]]

    References:
        Pruthi, Liu, Kale, Sundararajan (2020), Estimating Training Data Influence by
        Tracing Gradient Descent, arXiv 2002.08484, appendix F.
    """
    if project is not None:
        check_integer(project, "project", 1)
    run_of = partial(Run, loss, where, progress=progress)

    def build(
        key: jax.Array | None,
        folder: str | PathLike[str],
        checkpoints: Any,
        learning_rates: jax.Array,
        train: Any,
        *,
        visits: jax.Array | None = None,
        precondition: Any = None,
    ) -> Store:
        run = run_of(
            *(checkpoints, learning_rates, train),
            key=key,
            visits=None if visits is None else np.asarray(visits),
            precondition=precondition,
        )
        return Store(_write(run, project, Path(folder)), follow(run), project)

    def reopen(
        folder: str | PathLike[str], checkpoints: Any, *, precondition: Any = None
    ) -> Store:
        shards = load_shards(Path(folder))
        if not shards.complete:
            raise ValueError(
                f"{folder} was broken off after {shards.num_rows} examples; wanted a "
                "complete store: call build again with the same arguments to go on."
            )
        for shard in shards.shards:
            shards.find(shard)
        about = shards.about
        run = run_of(
            *(checkpoints, about["learning_rates"], None),
            key=_key_of(about["key"]),
            precondition=precondition,
        )
        course = follow(run)
        model = describe_model(course, project) | {"sketch": describe_sketch(run.key)}
        check_same(about, model, shards.folder)
        return Store(shards, course, project)

    return Datastore(keyed(build, project), reopen)


def _embeddings(project: int | None, reading: Reading) -> Method:
    """The embeddings of examples at a checkpoint, without the learning rate."""
    (embed,) = embedders(project, reading)
    return Method(
        lambda point, test: (),
        lambda point, kept, some: embed(point, some),
        per_test=False,
    )


def _write(run: Run, project: int | None, folder: Path) -> Shards:
    """Writes the shards that are not there yet: a shard a block."""
    shards, count = None, 0
    for count, step in enumerate(walk(run, partial(_embeddings, project)), start=1):
        if shards is None:
            shards = begin_shards(folder, _describe(run, project, step))
        source = fingerprint([_real(batch) for batch in step.block])
        if count <= len(shards.shards):
            before = shards.shards[count - 1]
            if before.source != source:
                at = f"examples {step.block[0].start}..{step.block[-1].end - 1}"
                raise ValueError(
                    f"{folder} was built of other training examples or batches: {at} "
                    "differ; wanted the same, or another folder."
                )
        elif shards.complete:
            break
        else:
            rows = _rows(step, shards.about["learning_rates"], run.checkpoints)
            shards.append(rows, source)
    assert shards is not None
    if shards.complete and count != len(shards.shards):
        raise ValueError(
            f"{folder} was built of {shards.num_rows} training examples, now there are "
            f"{'fewer' if count < len(shards.shards) else 'more'}; wanted the same, or "
            "another folder."
        )
    shards.complete = True
    shards.save()
    return shards


def _rows(step: Step, rates: list[float], checkpoints: Any) -> np.ndarray:
    """The embeddings of a block at all checkpoints, (n, K width)."""
    parts = []
    for k, found in enumerate(step.rows):
        # The root of the learning rate here and with the test examples; the visits
        # belong to the training examples alone.
        root = rates[k] ** 0.5
        rows = []
        for batch, some in zip(step.block, found, strict=True):
            credit = step.credit(k, batch)[: batch.count, None]
            rows.append(np.asarray(some)[: batch.count] * (credit / (root or 1.0)))
        parts.append(np.concatenate(rows))
    embeddings = np.concatenate(parts, axis=1).astype(step.reading.dtype)
    spoiled = ~np.isfinite(embeddings).all(axis=1)
    index = step.block[0].start + np.arange(len(embeddings))
    check_finite(np.where(spoiled, np.nan, 0.0), "train", index, checkpoints)
    return embeddings


def _real(batch: Batch) -> Any:
    return jax.tree.map(lambda x: x[: batch.count], batch.examples)


def _describe(run: Run, project: int | None, step: Step) -> dict[str, Any]:
    """What a store is built of, as json can say it."""
    course = follow(run)
    (embed,) = embedders(project, step.reading)
    params = jax.eval_shape(lambda tree: tree, course.series.at(0))
    rates = check_rates(run.learning_rates, course.series.count)
    return {
        **describe_model(course, project),
        "layout": describe_layout(embed, params, step.block[0].examples),
        "key": _key_data(run.key),
        "sketch": describe_sketch(run.key),
        "learning_rates": np.asarray(rates, np.float64).tolist(),
        "visits": None if run.visits is None else fingerprint(run.visits),
        "dtype": str(np.dtype(step.reading.dtype)),
    }


def _key_data(key: jax.Array | None) -> dict[str, Any] | None:
    if key is None:
        return None
    data = np.asarray(jax.random.key_data(key))
    return {"impl": str(jax.random.key_impl(key)), "data": data.tolist()}


def _key_of(saved: dict[str, Any] | None) -> jax.Array | None:
    if saved is None:
        return None
    data = jnp.asarray(saved["data"], jnp.uint32)
    return jax.random.wrap_key_data(data, impl=saved["impl"])
