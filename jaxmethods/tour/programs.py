"""All compiled programs of a tour, made before the training on two threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from ..audit.model import Apply
from ..audit.progress import progress
from ..data import Images
from .evaluation import Accuracy, accuracy_meter
from .explanation import (
    LabelErrors,
    Mistake,
    Planted,
    label_error_finder,
    mistake_explainer,
)
from .measurements import WireBytes, exchange_bytes
from .training import CODEC, Batch, Trainer, TrainState


class Programs(NamedTuple):
    """What the stages call.

    Attributes:
        step: `step(state, batch) -> state`, the composed training step.
        exact: `exact(params, batch)`, the gradient without quantization.
        measure: `measure(params) -> Accuracy`.
        find: `find(checkpoints, learning_rates) -> LabelErrors`.
        explain: `explain(checkpoints, learning_rates) -> list[Mistake]`.
        wire: What the compiled exchange sends.
    """

    step: Callable[[TrainState, Batch], TrainState]
    exact: Callable[[Any, Batch], Any]
    measure: Callable[[Any], Accuracy]
    find: Callable[[Any, list[float]], LabelErrors]
    explain: Callable[[Any, list[float]], list[Mistake]]
    wire: WireBytes


def compile_programs(
    apply: Apply,
    trainer: Trainer,
    state: TrainState,
    batch: Batch,
    *,
    ranked: Planted,
    test: Images,
    radii: list[float],
    num_checkpoints: int,
) -> Programs:
    """Compiles the step on a thread and, meanwhile, everything else.

    Args:
        apply: `apply(params, image) -> logits` of one image.
        trainer: Whose step and exact gradient to compile.
        state: A state, as `trainer.init` lays it out.
        batch: A batch of the training's size.
        ranked: Training examples that influence looks at.
        test: Test examples.
        radii: Where accuracy is measured.
        num_checkpoints: How many checkpoints influence reads.
    """
    params = jax.device_get(state.params)
    stacked = jax.tree.map(lambda p: np.stack([p] * num_checkpoints), params)
    pool = ThreadPoolExecutor(1)
    step = pool.submit(trainer.step.lower(state, batch).compile)
    pool.shutdown(wait=False)
    jobs: dict[str, Callable[[], Any]] = {
        "exact": trainer.exact.lower(params, batch).compile,
        "measure": lambda: accuracy_meter(apply, params, test, radii),
        "find": lambda: label_error_finder(apply, stacked, ranked),
        "explain": lambda: mistake_explainer(apply, stacked, ranked.train, test),
        "wire": lambda: exchange_bytes(trainer.plan, CODEC, params),
        "step": step.result,
    }
    names = progress(jobs, "compiling", len(jobs))
    return Programs(**{name: jobs[name]() for name in names})
