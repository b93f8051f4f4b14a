"""A whole audit: every section that is asked for, whatever happens to the others."""

import json
import math
import time
from collections.abc import Callable, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..core import check_choice
from .accuracy import Accuracy, accuracy
from .certificates import Certificates, certificates
from .folder import write_files
from .labels import Labels, labels
from .making import made_of
from .memory import Memory, memory
from .model import Apply, Model, check_labels, read_model
from .overview import audit_page
from .pictures import data_uri, grey
from .problems import one_line
from .quantized import BITS, Quantized, quantized
from .radii import default_radii
from .summary import summary
from .trained import num_trained

SECTIONS = ("accuracy", "certificates", "quantized", "labels", "memory")


class AuditConfig(NamedTuple):
    """What to ask of a model.

    Attributes:
        skip: Sections that are left out, of `SECTIONS`.
        eps: Radii of attacks and certificates, in units of the inputs; None: 0.005 to
            0.1 where the norm is "linf", 0.1 to 2 where it is "l2", for inputs in
            [0, 1].
        norm: Their norm, "linf" or "l2".
        bounds: The least and the greatest value of an entry; None for no limits.
        method: What proves radii: "ibp", "crown_ibp", "crown", "alpha_crown", or "auto"
            for "crown" where it is affordable, else "crown_ibp".
        bits: Of quantized weights.
        per: What has a grid of its own: "tensor" or "channel".
        devices: For how many devices training is planned.
        batch: Examples of a training step, over all devices.
        chunk: How many inputs are looked at at once.
        batched: Whether the model takes a batch; None: found out.

    Example:
        >>> AuditConfig(skip=("memory",)).devices
        8
    """

    skip: Sequence[str] = ()
    eps: Sequence[float] | None = None
    norm: str = "linf"
    bounds: tuple[float, float] | None = (0.0, 1.0)
    method: str = "auto"
    bits: Sequence[int] = BITS
    per: str = "tensor"
    devices: int = 8
    batch: int = 64
    chunk: int = 64
    batched: bool | None = None


class Report(NamedTuple):
    """What an audit found; a section that was left out or failed is None.

    `print(report)` shows the numbers.

    Attributes:
        name: Of the model.
        inputs: (n, ...), the shape of the inputs.
        num_classes: Of the model.
        num_parameters: Numbers that are trained, without running statistics and keys.
        accuracy: As they are and under attack.
        certificates: Proven within each radius.
        quantized: Proven for weights of few bits.
        labels: Ranked by self-influence.
        memory: Plans for several devices.
        problems: Section -> why it failed and what to do, in one line.
        seconds: Section -> how long it took.
        pictures: (source, caption) of the suspicious examples that are images.
        asked: The settings, by the names of `AuditConfig`; of the command also where
            model and data came from, "inputs" and "labels" the names of arrays in the
            file "data".
        made: Versions, steps of attacks, how many checkpoints, which arrays are not
            trained.
    """

    name: str
    inputs: tuple[int, ...]
    num_classes: int
    num_parameters: int
    accuracy: Accuracy | None
    certificates: Certificates | None
    quantized: Quantized | None
    labels: Labels | None
    memory: Memory | None
    problems: dict[str, str]
    seconds: dict[str, float]
    pictures: list[tuple[str, str]]
    asked: dict[str, Any]
    made: dict[str, Any]

    def __str__(self) -> str:
        return summary(self.findings())

    def findings(self) -> dict[str, Any]:
        """The numbers as dicts, lists and text: what the JSON holds."""
        found: dict[str, Any] = {
            "model": {
                "name": self.name,
                "inputs": list(self.inputs),
                "num_inputs": self.inputs[0],
                "input_shape": list(self.inputs[1:]),
                "num_classes": self.num_classes,
                "num_parameters": self.num_parameters,
            },
            "asked": self.asked,
            "made": self.made,
            "problems": self.problems,
            "seconds": self.seconds,
        }
        for name in SECTIONS:
            result = getattr(self, name)
            found[name] = None if result is None else _plain(result)
        return found

    def page(self) -> str:
        """One self-contained HTML page."""
        return audit_page(self.findings(), self.pictures)

    def write(self, out: Path | str) -> None:
        """Writes `index.html` and `findings.json` to a folder, which it makes.

        In the JSON a number that is not finite, such as an infinite loss, is null.

        Raises:
            OSError: One cannot be written; says which.
        """
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        found = _finite(self.findings())
        numbers = json.dumps(found, indent=1, allow_nan=False) + "\n"
        files = {"index.html": self.page(), "findings.json": numbers}
        write_files(out, files, "make room or choose another folder.")


def audit(
    apply: Apply,
    params: Any,
    inputs: ArrayLike,
    labels: ArrayLike | None,
    config: AuditConfig | None = None,
    *,
    checkpoints: Sequence[Any] | None = None,
    name: str = "the model",
    progress: bool = False,
) -> Report:
    """Asks of any trained classifier how far it can be trusted.

    Runs the sections `accuracy`, `certificates`, `quantized`, `labels` and `memory`.
    One that fails, for a primitive without a bound or labels that do not fit, becomes
    one line of `Report.problems`; the others go on.

    Args:
        apply: `apply(params, x) -> logits`, of one input or of a batch.
        params: A pytree of arrays.
        inputs: (n, ...) floating.
        labels: (n,) integers; None where there are none.
        config: What to ask; None for the defaults of `AuditConfig`.
        checkpoints: Parameters in the course of training, for `labels`; None: `params`.
        name: What the report calls the model.
        progress: Whether to show on standard error how far it is.

    Returns:
        A `Report`, with `write(folder)` for a page and a JSON.

    Raises:
        TypeError, ValueError: Nothing can run: `apply`, `params` or `inputs` do not fit
            each other, as `read_model` says; a section to skip that there is none of.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        >>> x = jnp.array([[0.9, 0.1], [0.4, 0.6]])
        >>> config = AuditConfig(skip=["quantized", "labels"], eps=[0.05, 0.2])
        >>> report = audit(lambda w, x: x @ w, w, x, jnp.array([0, 1]), config)
        >>> report.accuracy.clean, report.certificates.certified, report.quantized
        (1.0, [1.0, 0.5], None)
    """
    config = config or AuditConfig()
    if isinstance(config.skip, str):
        raise ValueError(
            f"skip is {config.skip!r}; wanted a sequence of sections, such as "
            f"[{config.skip!r}]."
        )
    for section in config.skip:
        check_choice(section, SECTIONS, "a section to skip")
    if config.eps is None:
        config = config._replace(eps=default_radii(config.norm))
    model = read_model(apply, params, inputs, batched=config.batched)
    wrong = _problem(
        partial(check_labels, labels, len(model.inputs), model.num_classes)
    )
    found: dict[str, Any] = {}
    problems: dict[str, str] = {}
    seconds: dict[str, float] = {}
    runs = _runs(model, labels, config, checkpoints, progress)
    for section in SECTIONS:
        if section in config.skip:
            continue
        began = time.monotonic()
        # All but the plan look at labels.
        problem = None if section == "memory" else wrong
        if problem is None:
            problem = _problem(partial(_keep, found, section, runs[section]))
        if problem is not None:
            problems[section] = problem
        seconds[section] = round(time.monotonic() - began, 2)
    return Report(
        name,
        model.inputs.shape,
        model.num_classes,
        num_trained(model.params),
        **{section: found.get(section) for section in SECTIONS},
        problems=problems,
        seconds=seconds,
        pictures=_pictures(found.get("labels"), model.inputs, config.bounds),
        asked=_plain(config),
        made=made_of(model, 1 if checkpoints is None else len(checkpoints)),
    )


def _runs(
    model: Model,
    given: Any,
    config: AuditConfig,
    checkpoints: Sequence[Any] | None,
    progress: bool,
) -> dict[str, Callable[[], Any]]:
    """The sections, each with what it takes of the config."""
    data = model.apply, model.params, model.inputs
    how: dict[str, Any] = {"batched": False, "chunk": config.chunk}
    how["progress"] = progress
    radii = {"eps": config.eps, "norm": config.norm, "bounds": config.bounds}
    return {
        "accuracy": partial(accuracy, *data, given, **radii, **how),
        "certificates": partial(
            certificates, *data, given, method=config.method, **radii, **how
        ),
        "quantized": partial(
            quantized, *data, given, bits=config.bits, per=config.per, **how
        ),
        "labels": partial(labels, *data, given, checkpoints=checkpoints, **how),
        "memory": partial(
            memory, *data, devices=config.devices, batch=config.batch, batched=False
        ),
    }


def _keep(found: dict[str, Any], section: str, run: Callable[[], Any]) -> None:
    found[section] = run()


def _problem(run: Callable[[], Any]) -> str | None:
    """Why something failed, in one line; None where it did not."""
    try:
        run()
    except Exception as error:
        # Errors of this package tell what to do; those of others do not.
        kinds = TypeError | ValueError | NotImplementedError
        told = any(word in str(error) for word in ("wanted", "register_rule"))
        if told and isinstance(error, kinds):
            return one_line(error)
        line = one_line(error, named=True)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            return (
                f"{line}; where memory is short a smaller chunk (--chunk) needs less, "
                "else leave the section out (--skip)."
            )
        return f"{line}; mend the model, or leave the section out (--skip)."
    return None


def _pictures(
    ranked: Labels | None, inputs: np.ndarray, bounds: tuple[float, float] | None
) -> list[tuple[str, str]]:
    if ranked is None:
        return []
    shown = []
    for suspect in ranked.suspects:
        image = grey(inputs[suspect.index], bounds)
        if image is None:
            return []
        caption = f"{suspect.index}: labelled {suspect.label}, read {suspect.predicted}"
        shown.append((data_uri(image), caption))
    return shown


def _plain(value: Any) -> Any:
    """Named tuples as dicts, sequences and arrays as lists."""
    if hasattr(value, "_asdict"):
        return {k: _plain(v) for k, v in value._asdict().items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Sequence | Set) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def _finite(value: Any) -> Any:
    """None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
