"""The report as one self-contained HTML page: plots, pictures, tables, no network."""

from collections.abc import Mapping
from typing import Any

from ..audit.charts import Series, bar_chart, line_chart
from ..audit.page import (
    document,
    facts,
    figure,
    paragraph,
    preformatted,
    row,
    section,
    strip,
    table,
)
from ..audit.sections import (
    accuracy_chart,
    held_bytes,
    percent,
    robustness,
    suspicious_labels,
)


def radius_chart(accuracy: Mapping[str, Any]) -> str:
    """Accuracy over the radius: the picture of the tour."""
    shares = {
        "under PGD attack": accuracy["attacked"],
        "certified": accuracy["certified"],
    }
    return accuracy_chart(accuracy["eps"], accuracy["clean"], shares)


def report_page(findings: Mapping[str, Any]) -> str:
    """The page of a finished tour.

    Args:
        findings: What the JSON holds, and the pictures under `"pictures"`.
    """
    data, settings = findings["data"], findings["settings"]
    subtitle = (
        f"{data['name']}, {data['num_train']} training and {data['num_test']} test "
        f"images of {data['height']} x {data['width']}; {settings['steps']} steps on a "
        f"mesh of {settings['mesh'][0]} data x {settings['mesh'][1]} model devices; "
        "every number was measured in this run."
    )
    return document(
        "A tour of jaxmethods",
        subtitle,
        _headline(findings),
        _certificates(findings),
        _gradients(findings),
        _exchange(findings),
        _labels(findings),
        _mistakes(findings),
    )


def _headline(findings: Mapping[str, Any]) -> str:
    accuracy, wire = findings["accuracy"], findings["wire"]
    at = accuracy["eps"].index(findings["settings"]["eps"])
    return facts(
        {
            "clean accuracy": percent(accuracy["clean"]),
            f"certified at eps = {accuracy['eps'][at]:g}": percent(
                accuracy["certified"][at]
            ),
            "fewer bytes exchanged": f"{wire['ratio']:.0f} x",
            "dense memory a device": percent(findings["memory"]["dense_share"]),
            "label errors found in the top 20 %": percent(
                findings["labels"]["found_in_top_fifth"]
            ),
        }
    )


def _certificates(findings: Mapping[str, Any]) -> str:
    accuracy, training = findings["accuracy"], findings["training"]
    steps = list(range(1, len(training["loss"]) + 1))
    curve = line_chart(
        "Training loss",
        {
            "loss": Series(steps, training["loss"]),
            "radius x 10": Series(
                steps, [10 * e for e in training["eps"]], dashed=True
            ),
        },
        x_label="step",
        y_label="nats; radius x 10",
    )
    return robustness(
        "bound: what is certain",
        "The loss holds a CROWN-IBP bound of the worst logits within eps, so the "
        "network learns to be provable. Between the attacked and the certified "
        "line lies what no one knows: no attack was found and no proof either.",
        radius_chart(accuracy),
        "Right on the test set: as given, under 20 steps of PGD, and proven for "
        "every image within eps.",
        figure(curve, "The mixed loss while the radius grows."),
    )


def _gradients(findings: Mapping[str, Any]) -> str:
    gradient = findings["gradient"]
    rows = [
        (name, f"{g['noise']:.2e}", f"{g['bias']:.2e}", f"{g['bias_expected']:.2e}")
        for name, g in gradient["layers"].items()
    ]
    return section(
        "quantize: gradients of five bits",
        paragraph(
            "Block Householder quantization of every layer's gradient, "
            f"{gradient['draws']} draws at the trained weights against the exact "
            "gradient of the same batch. Noise is the variance, bias the squared "
            "distance of the mean of the draws, both relative to the squared gradient; "
            "an unbiased estimator shows about noise / draws as bias."
        ),
        table(("parameter", "noise", "bias", "noise / draws"), rows),
        *(paragraph(f"Left exact: {text}.") for text in gradient["left_exact"]),
    )


def _exchange(findings: Mapping[str, Any]) -> str:
    wire, memory = findings["wire"], findings["memory"]
    bars = {
        "data parallel": memory["data_parallel_bytes"],
        "plan": memory["plan_bytes"],
        "measured": memory["measured_bytes"],
    }
    return section(
        "shard: what is sent and what is held",
        row(
            figure(
                bar_chart(
                    "Bytes a device sends in one exchange",
                    {
                        "dense": wire["dense_bytes"] / 1e3,
                        "AdaComp": wire["sent_bytes"] / 1e3,
                    },
                    unit="kB",
                ),
                "Bytes that a device sends in one gradient exchange, read from the "
                "compiled program: a dense mean against AdaComp.",
            ),
            held_bytes(
                bars,
                "Parameters that a device holds: replicated, as the plan predicts, "
                "and as measured on the device.",
            ),
        ),
        preformatted(memory["table"]),
    )


def _labels(findings: Mapping[str, Any]) -> str:
    labels = findings["labels"]
    shares = labels["inspected"]
    chart = line_chart(
        "Planted label errors found",
        {
            "self-influence": Series(shares, labels["found"]),
            "sum of losses": Series(shares, labels["found_by_loss"]),
            "by chance": Series(shares, shares, dashed=True),
        },
        x_label="share of the training set inspected",
        y_label="share of the errors found",
    )
    return suspicious_labels(
        f"{labels['planted']} of {labels['ranked']} training labels were replaced "
        "before training. Ranked by self-influence, the first ones are shown.",
        findings["pictures"]["suspicious"],
        figure(chart, "Found when the training set is inspected in that order."),
    )


def _mistakes(findings: Mapping[str, Any]) -> str:
    rows = [strip(row, query=True) for row in findings["pictures"]["mistakes"]]
    text = (
        "Each row: a test digit that the network gets most wrong, and the training "
        "digits whose gradient steps raised its loss most (TracIn opponents)."
    )
    return section(
        "influence: who is to blame for the worst mistakes", paragraph(text), *rows
    )
