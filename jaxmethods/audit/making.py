"""How an audit was made: of what, with which settings, by which versions."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from .. import __version__
from .accuracy import APGD_STEPS, PGD_STEPS
from .model import Model
from .trained import untrained_names


def made_of(model: Model, num_checkpoints: int) -> dict[str, Any]:
    """What the numbers of an audit rest on, besides what was asked.

    Args:
        model: As it was checked.
        num_checkpoints: How many of them the labels were ranked with.
    """
    return {
        "jaxmethods": __version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "num_checkpoints": num_checkpoints,
        "not_trained": untrained_names(model.params),
        "pgd_steps": PGD_STEPS,
        "apgd_steps": APGD_STEPS,
    }


def how_made(findings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was audited and how, as (what, how) in an order to read.

    Args:
        findings: As `Report.findings` gives them.
    """
    return [*_sources(findings), *_settings(findings)]


def _sources(findings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    asked, made = findings["asked"], findings["made"]
    yield "model", findings["model"]["name"]
    number = made["num_checkpoints"]
    if place := asked.get("checkpoint"):
        inside = f", {asked['subtree']} of it" if asked["subtree"] else ""
        like = f", in the structure of {asked['like']}" if asked["like"] else ""
        count = f" ({number} checkpoints; the last is audited)" if number > 1 else ""
        yield "parameters", f"{place}{inside}{like}{count}"
    elif number > 1:
        yield "parameters", f"{number} checkpoints; the last is audited"
    if made["not_trained"]:
        names = made["not_trained"]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        yield "not counted, as not trained", f"{', '.join(names[:6])}{more}"
    if place := asked.get("data"):
        limit = "" if asked["limit"] is None else f"; the first {asked['limit']}"
        arrays = f"{asked['inputs']!r} and labels {asked['labels']!r}"
        yield "data", f"{place}, inputs {arrays}{limit}"


def _settings(findings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    asked, made = findings["asked"], findings["made"]
    if findings["accuracy"]:
        several = findings["model"]["num_classes"] > 2
        goals = "cross entropy" + (", difference of logits ratio" if several else "")
        yield "PGD", f"{made['pgd_steps']} steps, cross entropy, from the input"
        yield "APGD", f"{made['apgd_steps']} steps for each of: {goals}"
    if proven := findings["certificates"]:
        yield "certified radii", f"{proven['method']}, norm {proven['norm']}"
    if quantized := findings["quantized"]:
        grid = f"one grid a {quantized['per']}"
        yield "certified weights", f"{quantized['method']}, {grid}"
    if asked["skip"]:
        yield "left out", ", ".join(asked["skip"])
    times = (f"{name} {took:g} s" for name, took in findings["seconds"].items())
    if findings["seconds"]:
        yield "took", ", ".join(times)
    versions = f"jaxmethods {made['jaxmethods']}, jax {made['jax']}"
    yield "versions", f"{versions} on {made['backend']}"
