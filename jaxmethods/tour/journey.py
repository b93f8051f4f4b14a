"""The whole tour: trains (or goes on), measures, explains, reports."""

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from .. import shard
from ..audit.charts import standalone
from ..audit.folder import write_files
from ..audit.model import example_loss
from ..audit.pictures import data_uri
from ..audit.progress import progress
from ..data import Images
from .checkpoints import Checkpoints
from .config import Settled, TourConfig, settle
from .explanation import Planted, plant_errors
from .measurements import bytes_a_device, gradient_noise
from .network import DigitNet, init_params
from .objective import radius
from .page import radius_chart, report_page
from .programs import Programs, compile_programs
from .summary import print_summary
from .training import Batch, Trainer, TrainState, learning_rate, make_trainer

_SAVES = 6  # checkpoints of a training
_EXPLAINING = 4  # the last of them, which the explanations read
_RANKED = 10_000  # training examples that influence looks at, at most


class _Setting(NamedTuple):
    """What every stage needs; influence ranks `ranked`, accuracy counts over `test`."""

    settled: Settled
    apply: Any
    key: jax.Array
    planted: Planted
    ranked: Planted
    test: Images
    trainer: Trainer


def run_tour(config: TourConfig) -> dict[str, Any]:
    """Runs a tour and writes its report; returns the findings.

    Raises:
        OSError, ValueError: As `settle` does, and where checkpoints or the report
            cannot be written or read.
    """
    began = time.monotonic()
    settled = settle(config, len(jax.devices()))
    setting, params = _set_up(settled)
    checkpoints = Checkpoints(config.out / "checkpoints", _identity(settled))
    try:
        with _left_exact() as exact:
            state = setting.trainer.init(params)
            programs = _compile(setting, state)
            state, trained_s = _train(setting, programs, state, checkpoints)
            findings = _findings(setting, programs, state, checkpoints)
        findings["gradient"]["left_exact"] = sorted(exact)
        findings["machine"] = _machine(began, trained_s)
        write_report(config.out, findings)
        print_summary(findings, config.out)
        checkpoints.discard()
    finally:
        checkpoints.close()
    return findings


@contextmanager
def _left_exact() -> Iterator[set[str]]:
    """Collects what `fqt` warns of, for the report, in place of the terminal."""
    told: set[str] = set()
    show = warnings.showwarning

    def collect(message: Any, category: Any, *where: Any, **options: Any) -> None:
        text = str(message)
        if text.startswith("quantize: "):
            told.add(re.sub(r"at \S*/", "at ", text.removeprefix("quantize: ")))
        else:
            show(message, category, *where, **options)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="quantize: ")
        warnings.showwarning = collect
        yield told


def _set_up(settled: Settled) -> tuple[_Setting, Any]:
    config, split, shape = settled
    count = shape[0] * shape[1]
    devices = np.array(jax.devices()[:count]).reshape(shape)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    key = jax.random.key(config.seed)
    net = DigitNet()
    apply: Callable[..., Any] = net.apply
    image_shape = split.train.images.shape[1:]
    params = init_params(net, jax.random.fold_in(key, 0), image_shape)
    planted = plant_errors(split.train, config.seed)
    batch = tuple(a[: config.batch] for a in planted.train)

    def loss(params: Any, batch: Any) -> jax.Array:
        # The natural loss names each layer once; the bound uses its kernels again.
        return jnp.mean(jax.vmap(lambda *e: example_loss(apply, params, e))(*batch))

    plan = shard.splitbrain(loss, params, batch, mesh=mesh)
    trainer = make_trainer(apply, plan, num_steps=config.num_steps, eps=config.eps)
    ranked = Planted(
        Images(*(a[:_RANKED] for a in planted.train)), planted.wrong[:_RANKED]
    )
    test = Images(*(a[: 256 if config.quick else 2048] for a in split.test))
    setting = _Setting(settled, apply, key, planted, ranked, test, trainer)
    return setting, params


def _compile(setting: _Setting, state: TrainState) -> Programs:
    num_steps, eps = setting.settled.config.num_steps, setting.settled.config.eps
    return compile_programs(
        setting.apply,
        setting.trainer,
        state,
        _batch(setting, 0, setting.key),
        ranked=setting.ranked,
        test=setting.test,
        radii=[0.0, eps / 4, eps / 2, eps, 1.5 * eps],
        num_checkpoints=len(_saved_steps(num_steps)[-_EXPLAINING:]),
    )


def _identity(settled: Settled) -> dict[str, Any]:
    """What decides the numbers of a training: another identity, another training."""
    config, split, mesh = settled
    return {
        "data": split.name,
        "train": len(split.train.labels),
        "pixels": float(split.train.images.sum(dtype=np.float64)),
        "seed": config.seed,
        "steps": config.num_steps,
        "eps": config.eps,
        "batch": config.batch,
        "mesh": list(mesh),
    }


def _batch(setting: _Setting, number: int, key: jax.Array) -> Batch:
    """The batch of a step: a function of the seed and the step alone."""
    train, size = setting.planted.train, setting.settled.config.batch
    each = len(train.labels) // size
    epoch, place = divmod(number, each)
    # A stream of its own: under that of the planted errors, they would come first.
    shuffle = np.random.default_rng((setting.settled.config.seed, 2, epoch))
    order = shuffle.permutation(len(train.labels))
    rows = order[place * size : (place + 1) * size]
    return Batch(
        train.images[rows],
        train.labels[rows],
        np.int32(number),
        jax.random.fold_in(key, number),
    )


def _saved_steps(num_steps: int) -> list[int]:
    return sorted({max(1, num_steps * k // _SAVES) for k in range(1, _SAVES + 1)})


def _train(
    setting: _Setting, programs: Programs, state: TrainState, checkpoints: Checkpoints
) -> tuple[TrainState, float]:
    """Trains to the end, from the last checkpoint if there is one."""
    began = time.monotonic()
    num_steps = setting.settled.config.num_steps
    done = checkpoints.steps()
    start = done[-1] if done else 0
    if start:
        state = checkpoints.restore(start, state)
        print(f"going on from step {start} of {num_steps}, saved by an earlier run")
    key = jax.random.fold_in(setting.key, 3)
    saves = _saved_steps(num_steps)
    numbers = range(start, num_steps)
    for number in progress(numbers, "training", num_steps, start=start):
        state = programs.step(state, _batch(setting, number, key))
        jax.block_until_ready(state.loss)
        if number + 1 in saves:
            checkpoints.save(number + 1, state)
    return state, time.monotonic() - began


def _findings(
    setting: _Setting, programs: Programs, state: TrainState, checkpoints: Checkpoints
) -> dict[str, Any]:
    config, split, mesh = setting.settled
    num_steps = config.num_steps
    accuracy = programs.measure(jax.device_get(state.params))
    grown = radius(np.arange(num_steps), num_steps, config.eps)
    findings: dict[str, Any] = {
        "settings": {
            "seed": config.seed,
            "steps": num_steps,
            "eps": config.eps,
            "batch": config.batch,
            "mesh": list(mesh),
            "quick": config.quick,
        },
        "data": {
            "name": split.name,
            "num_train": len(split.train.labels),
            "num_test": len(setting.test.labels),
            "height": split.train.images.shape[1],
            "width": split.train.images.shape[2],
        },
        "training": {"loss": np.asarray(state.loss).tolist(), "eps": grown.tolist()},
        "accuracy": accuracy._asdict(),
    }
    findings |= _costs(setting, programs, state)
    findings |= _explanations(setting, programs, state, checkpoints)
    return findings


def _costs(setting: _Setting, programs: Programs, state: TrainState) -> dict[str, Any]:
    """Noise of the gradient, bytes on the wire, bytes on a device."""
    config, trainer = setting.settled.config, setting.trainer
    batch = _batch(setting, config.num_steps - 1, jax.random.fold_in(setting.key, 4))
    draws = 8 if config.quick else 32
    numbers = progress(range(draws), "noise of the gradient", draws)

    @jax.jit
    def again(state: TrainState) -> TrainState:
        return jax.tree.map(jnp.copy, state)  # a step consumes the state it is given

    def draw(number: int) -> Any:
        noise = jax.random.fold_in(batch.key, number)
        return trainer.drawn(programs.step(again(state), batch._replace(key=noise)))

    exact = programs.exact(jax.device_get(state.params), batch)
    noise = gradient_noise(map(draw, numbers), exact)
    replicated = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    held = bytes_a_device(state.params)
    return {
        "gradient": {
            "draws": draws,
            "layers": {name: noise[name]._asdict() for name in noise},
        },
        "wire": programs.wire._asdict(),
        "memory": {
            "data_parallel_bytes": replicated,
            "plan_bytes": int(trainer.plan.parameter_bytes),
            "measured_bytes": held,
            "dense_share": held / replicated,
            "table": str(trainer.plan),
        },
    }


def _explanations(
    setting: _Setting, programs: Programs, state: TrainState, checkpoints: Checkpoints
) -> dict[str, Any]:
    """Label errors found, and the digits behind the worst mistakes."""
    num_steps = setting.settled.config.num_steps
    steps = checkpoints.steps()[-_EXPLAINING:]
    kept = [jax.device_get(checkpoints.restore(s, state).params) for s in steps]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *kept)
    rate: Callable[[int], Any] = learning_rate(num_steps)
    rates = [float(rate(step - 1)) for step in steps]
    ranked, test = setting.ranked, setting.test
    print("influence: self-influence of the training set, and of the worst mistakes")
    errors = programs.find(stacked, rates)
    mistakes = programs.explain(stacked, rates)
    return {
        "labels": {
            "planted": int(ranked.wrong.sum()),
            "ranked": len(ranked.wrong),
            "checkpoints": steps,
            "found_in_top_fifth": errors.found_in_top_fifth,
            "inspected": errors.inspected,
            "found": errors.found,
            "found_by_loss": errors.found_by_loss,
            "most_suspicious": errors.ranking[:20].tolist(),
        },
        "mistakes": [mistake._asdict() for mistake in mistakes],
        "pictures": _pictures(ranked, test, errors.ranking, mistakes),
    }


def _pictures(
    ranked: Planted, test: Images, ranking: np.ndarray, mistakes: list[Any]
) -> dict[str, Any]:
    def training(index: int) -> tuple[str, str]:
        label = int(ranked.train.labels[index])
        mark = " (planted)" if ranked.wrong[index] else ""
        return data_uri(ranked.train.images[index, ..., 0]), f"labelled {label}{mark}"

    rows = []
    for mistake in mistakes:
        index = mistake.test_index
        asked = f"a {int(test.labels[index])}, taken for {mistake.predicted}"
        question = data_uri(test.images[index, ..., 0]), asked
        rows.append([question, *map(training, mistake.opponents)])
    return {
        "suspicious": [training(int(i)) for i in ranking[:20]],
        "mistakes": rows,
    }


def _machine(began: float, trained_s: float) -> dict[str, Any]:
    """What differs from run to run: times, and what they were taken on."""
    return {
        "devices": len(jax.devices()),
        "device_kind": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "training_s": round(trained_s, 1),
        "total_s": round(time.monotonic() - began, 1),
    }


def write_report(out: Path, findings: dict[str, Any]) -> None:
    """Writes the page, the numbers and the picture of a tour.

    Raises:
        OSError: A file cannot be written; says which.
    """
    numbers = {k: v for k, v in findings.items() if k != "pictures"}
    files = {
        "index.html": report_page(findings),
        "findings.json": json.dumps(numbers, indent=1) + "\n",
        "accuracy.svg": standalone(radius_chart(findings["accuracy"])),
    }
    write_files(
        out,
        files,
        "make room or choose another --out: the training is kept and goes on from its "
        "end.",
    )
