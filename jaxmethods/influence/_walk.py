"""Takes a score bit by bit: batches as they come, one checkpoint in memory at a time.

It looks at values, so it runs outside of `jit`, and compiles what it does itself. A
block of examples is scored at one checkpoint after the other, then the next block is
read: the examples are read once, whatever their number, and each checkpoint once a
block.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import is_concrete, with_fast_convolutions
from . import _chunks
from ._checkpoints import check_rates, is_manager
from ._chunks import length_of, map_chunks, numbers_held
from ._methods import Method, MethodOf
from ._progress import Meter, meter
from ._run import Course, Run, check_visits, follow
from ._streams import (
    Batch,
    cut_batches,
    group_batches,
    is_stream,
    read_batches,
    shapes_of_one,
)
from ._task import Point, Reading, as_examples, first_of, read

# Numbers (not bytes) of examples that are held while checkpoints are read.
HELD = 2**26

Rows = list[jax.Array]


class Step(NamedTuple):
    """A block of examples, about to be scored.

    Attributes:
        block: The batches.
        rows: For each checkpoint, the rows of each batch; to be taken once, in order,
            before the next step.
        credit: `(k, batch) -> (width,)`: the learning rate times the visits, 0 for
            what fills a batch up.
        reading: What was read off the loss.
    """

    block: list[Batch]
    rows: Iterator[Rows]
    credit: Callable[[int, Batch], np.ndarray]
    reading: Reading

    def sums(self) -> Rows:
        """For each batch its rows, times the credits, summed over the checkpoints."""
        sums: list[Any] = [0.0] * len(self.block)
        for k, found in enumerate(self.rows):
            for i, (batch, rows) in enumerate(zip(self.block, found, strict=True)):
                credit = self.credit(k, batch).reshape(-1, *(1,) * (rows.ndim - 1))
                sums[i] = sums[i] + credit * rows
        return sums


def walk(run: Run, method_of: MethodOf) -> Iterator[Step]:
    """Takes the scores of a run block by block.

    Args:
        run: The run; its values are looked at.
        method_of: The score.

    Yields:
        The steps.

    Raises:
        TypeError: A value is traced.
        ValueError: As the public functions say.
    """
    _refuse_tracers(run)
    course = follow(run)
    count = course.series.count
    rates = np.asarray(check_rates(run.learning_rates, count))
    test = () if run.test is None else as_examples(run.test, "test")
    batches = read_batches(run.train, run.name)
    first = next(batches)
    reading = _read(course, first, *([] if run.test is None else [test]))
    work = _Work(course, method_of(reading), test)
    most = work.most_examples(first)
    cut = cut_batches(itertools.chain([first], batches), most)
    visits = None
    if run.visits is not None:
        visits = np.asarray(check_visits(run.visits, count, None))
        visits = np.broadcast_to(visits, (count, visits.shape[-1]))

    def credit(k: int, batch: Batch) -> np.ndarray:
        filled = np.zeros(length_of(batch.examples), reading.dtype)
        mine = 1.0 if visits is None else visits[k, batch.start : batch.end]
        filled[: batch.count] = rates[k] * mine
        return filled

    known = None if is_stream(run.train) else length_of(run.train)
    end = 0
    with meter(run.progress, None if known is None else known * count) as shown:
        for block in group_batches(cut, most):
            end = block[-1].end
            _check_covered(visits, end, run.name, exactly=False)
            yield Step(block, work.rows(block, shown), credit, reading)
    _check_covered(visits, end, run.name, exactly=True)


class _Work:
    """The compiled programs of a score, and the test examples.

    Attributes:
        course: The checkpoints.
        num_test: The number of scores in a row, 0 where rows have no score each.
        prepare: `Method.prepare`, compiled.
        score: `Method.score`, compiled.
        kept: Shapes of what is kept of the test examples.
        pieces: The test examples, so many at a time that what is kept of them is
            bounded; the last piece is filled up.
    """

    def __init__(self, course: Course, method: Method, test: Any) -> None:
        def score(point: Point, kept: Any, some: Any) -> jax.Array:
            return map_chunks(lambda few: method.score(point, kept, few), some)

        self.course = course
        self.num_test = length_of(test) if method.per_test else 0
        # Compiled here although a closure is compiled anew at each call: the same two
        # programs serve all checkpoints and batches, and a walk is long.
        self.prepare = jax.jit(with_fast_convolutions(method.prepare))
        self.score = jax.jit(with_fast_convolutions(score))
        first = course.point(0)
        self.kept = jax.eval_shape(self.prepare, first, test)
        self.pieces = [test]
        if self.num_test:
            numbers = numbers_held(lambda some: self.prepare(first, some), test)
            cut = cut_batches([test], _most(numbers))
            self.pieces = [piece.examples for piece in cut]

    def most_examples(self, batch: Any) -> int:
        """How many examples may be held, with what is computed of them."""
        rows = jax.eval_shape(self.score, self.course.point(0), self.kept, batch)
        data = sum(math.prod(x.shape) for x in shapes_of_one(batch))
        return min(_most(math.prod(rows.shape[1:])), max(1, HELD // max(data, 1)))

    def rows(self, block: list[Batch], shown: Meter) -> Iterator[Rows]:
        """The rows of each batch of a block, checkpoint by checkpoint."""
        count = self.course.series.count
        size = block[-1].end - block[0].start
        for k in range(count):
            done = block[0].start * count + size * k
            note = f"checkpoint {k + 1} of {count}, examples up to {block[-1].end}"
            shown.tell(done, note)
            yield self._rows_at(k, block)

    def _rows_at(self, k: int, block: list[Batch]) -> Rows:
        point = self.course.point(k)
        columns: list[Rows] = []
        for piece in self.pieces:
            kept = self.prepare(point, piece)
            columns.append([self.score(point, kept, b.examples) for b in block])
        if len(columns) == 1:
            return columns[0]
        whole = (jnp.concatenate(parts, axis=1) for parts in zip(*columns, strict=True))
        return [rows[:, : self.num_test] for rows in whole]


def _read(course: Course, *examples: Any) -> Reading:
    """Traces the loss at the first checkpoint on the first example of each set."""
    params = jax.eval_shape(lambda tree: tree, course.series.at(0))
    one = [jax.eval_shape(first_of, some) for some in examples]
    return read(course.loss, course.where, params, *one)


def _refuse_tracers(run: Run) -> None:
    values = [run.learning_rates, run.test, run.key, run.visits]
    values += [x for x in (run.checkpoints, run.precondition) if not is_manager(x)]
    values += [] if is_stream(run.train) else [run.train]
    values += [jnp.zeros(())]  # Inside of jit even this is traced.
    if not all(map(is_concrete, jax.tree.leaves(values))):
        raise TypeError(
            f"{run.name} comes in batches, or checkpoints from a manager, inside of "
            "jit, grad or vmap; these are read in Python, and their values looked at: "
            "call it outside, or pass arrays and stacked checkpoints."
        )


def _check_covered(visits: Any, end: int, name: str, *, exactly: bool) -> None:
    if visits is None:
        return
    length = visits.shape[-1]
    if end > length or (exactly and end != length):
        raise ValueError(
            f"visits has {length} numbers and {name} {'' if exactly else 'at least '}"
            f"{end} examples; wanted one number an example."
        )


def _most(numbers: int) -> int:
    """How many examples of so many numbers each fit."""
    return _chunks.examples_at_once(numbers)
