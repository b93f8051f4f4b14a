"""The page of an audit: one section a question, and a line where one failed."""

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Series, line_chart
from .making import how_made
from .page import details, document, facts, figure, paragraph, section, table
from .sections import (
    BLIND,
    accuracy_chart,
    digits,
    held_bytes,
    percent,
    robustness,
    suspicious_labels,
    without_alike,
)


def audit_page(findings: Mapping[str, Any], pictures: Sequence[tuple[str, str]]) -> str:
    """The page of a finished audit.

    Args:
        findings: As `Report.findings` gives them.
        pictures: (source, caption) of suspicious examples.
    """
    model = findings["model"]
    count, *shape = model["inputs"]
    subtitle = (
        f"{model['num_parameters']:,} parameters, {model['num_classes']} classes; "
        f"{count} inputs of {' x '.join(map(str, shape))}; every number was computed "
        "in this run."
    )
    parts = [_headline(findings)]
    if findings["problems"]:
        rows = list(findings["problems"].items())
        text = "These sections failed; each line says what to do."
        parts.append(
            section("What is missing", paragraph(text), table(("section", "why"), rows))
        )
    if findings["accuracy"] or findings["certificates"]:
        parts.append(_robustness(findings))
    if findings["quantized"]:
        parts.append(_quantized(findings["quantized"]))
    if findings["labels"]:
        parts.append(_labels(findings["labels"], pictures))
    if findings["memory"]:
        parts.append(_memory(findings["memory"]))
    parts.append(section("How this was made", table(("", ""), how_made(findings))))
    return document(f"Audit of {model['name']}", subtitle, *parts)


def _headline(findings: Mapping[str, Any]) -> str:
    shown: dict[str, str] = {}
    if accuracy := findings["accuracy"]:
        shown["clean accuracy"] = percent(accuracy["clean"])
        middle = len(accuracy["eps"]) // 2
        name = f"under attack at eps = {accuracy['eps'][middle]:g}"
        shown[name] = percent(min(accuracy["pgd"][middle], accuracy["apgd"][middle]))
    if proven := findings["certificates"]:
        middle = len(proven["eps"]) // 2
        name = f"certified at eps = {proven['eps'][middle]:g}"
        shown[name] = percent(proven["certified"][middle])
    if quantized := findings["quantized"]:
        name = f"certified with weights of {quantized['bits'][0]} bits"
        shown[name] = percent(quantized["certified"][0])
    return facts(shown)


def _robustness(findings: Mapping[str, Any]) -> str:
    accuracy, proven = findings["accuracy"], findings["certificates"]
    shares: dict[str, Sequence[float]] = {}
    if accuracy:
        shares |= {"PGD": accuracy["pgd"], "APGD": accuracy["apgd"]}
    if proven:
        shares["certified"] = proven["certified"]
    either = proven or accuracy
    assert either is not None
    eps = either["eps"]
    head = ("eps", *shares)
    rows = [
        (f"{e:g}", *map(percent, values))
        for e, *values in zip(eps, *shares.values(), strict=True)
    ]
    clean = accuracy["clean"] if accuracy else None
    method = f"; proven by {proven['method']}" if proven else ""
    bounds = findings["asked"]["bounds"]
    limits = "of any size" if bounds is None else "{:g} to {:g}".format(*bounds)
    gap, shown = "", ["right as given, under attack"] if accuracy else []
    if proven:
        shown.append("proven for every input within eps")
    if accuracy and proven:
        gap = (
            " Between the attacked and the certified line lies what no one knows: no "
            "attack was found and no proof either."
        )
    norm = {"linf": "each entry moves by at most eps", "l2": "Euclidean length"}
    blind = ""
    if accuracy and accuracy["blind"]:
        blind = f" Of the inputs {percent(accuracy['blind'])} {BLIND}."
    return robustness(
        "What holds within a radius",
        f"Radii in the norm {either['norm']} ({norm[either['norm']]}), entries "
        f"{limits}{method}. A mark is a radius that was looked at; between two of them "
        f"a line says what follows from the marks.{gap}{blind}",
        accuracy_chart(eps, clean, shares),
        f"{', and '.join(shown)}.".capitalize(),
        table(head, rows),
    )


def _quantized(quantized: Mapping[str, Any]) -> str:
    bits, shares = quantized["bits"], ("rounded", "certified")
    chart = line_chart(
        "Accuracy with weights of few bits",
        # What is proven of coarse grids holds for finer ones; of what is rounded
        # nothing follows for other grids.
        {
            "rounded": Series(bits, quantized["rounded"], between="nothing"),
            "certified": Series(bits, quantized["certified"], between="pre"),
        },
        x_label="bits of a weight",
        y_label="share of the inputs",
    )
    rows = [
        (str(b), percent(right), percent(proven))
        for b, right, proven in zip(bits, *(quantized[s] for s in shares), strict=True)
    ]
    return section(
        "What holds when weights are rounded",
        paragraph(
            f"One grid a {quantized['per']}. Rounded: right with every weight at the "
            "nearest value of the grid. Certified: right wherever each weight lies "
            f"within half a step, proven by {quantized['method']}; that covers any way "
            "to round to nearest on a grid as fine."
        ),
        figure(chart, "Right with weights rounded to nearest, and proven for all."),
        table(("bits", *shares), rows),
    )


def _labels(labels: Mapping[str, Any], pictures: Sequence[tuple[str, str]]) -> str:
    suspects = labels["suspects"]
    rows = [
        (str(s["index"]), s["label"], s["predicted"], influence, loss)
        for s, influence, loss in zip(
            suspects,
            digits([s["self_influence"] for s in suspects]),
            digits([s["loss"] for s in suspects]),
            strict=True,
        )
    ]
    count = labels["num_checkpoints"]
    over = "the checkpoint" if count == 1 else f"{count} checkpoints"
    head = ("input", "label", "read as", "self-influence", "loss in nats")
    return suspicious_labels(
        f"The {len(labels['scores'])} examples were ranked by self-influence, the "
        f"squared gradient of their own loss, over {over}. Wrong, rare and ambiguous "
        "ones lead; the first are shown.",
        pictures,
        table(head, rows),
        title="Labels that look wrong",
    )


def _memory(memory: Mapping[str, Any]) -> str:
    layouts, alike = without_alike(memory["layouts"])
    rows = [
        (
            plan["name"],
            f"{plan['parameter_bytes']:,}",
            f"{plan['memory_bytes']:,.0f}",
            f"{plan['wire_bytes']:,.0f}",
            plan["num_split"],
        )
        for plan in layouts
    ]
    head = ("layout", "parameters", "held in all", "sent a step", "arrays in parts")
    bars = {plan["name"]: plan["memory_bytes"] for plan in layouts}
    same = (
        f" No layer is worth splitting on {_listed(alike)}: held and sent is what data "
        "parallel training holds and sends."
        if alike
        else ""
    )
    return section(
        "Memory and traffic of training on several devices",
        paragraph(
            f"A training step with Adam, {memory['batch']} examples over "
            f"{memory['devices']} devices, planned from the trace of the loss; bytes "
            "are a device's. Arrays in parts are parameters of which a device holds a "
            f"part alone.{same}"
        ),
        held_bytes(bars, "Parameters, gradients, optimizer state and activations."),
        table(head, rows),
        paragraph(
            "Each layout, parameter by parameter. The last line of a table counts "
            "bytes that are not in it: the examples of a device, counters of the "
            "optimizer and what is computed before the first parameter is used. What "
            "is not trained, such as running statistics, is held whole besides."
        ),
        *(details(plan["name"], plan["table"]) for plan in layouts),
    )


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
