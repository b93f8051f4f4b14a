"""The report as one self-contained HTML page: plots, pictures, tables, no network."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Series, bar_chart, line_chart

_STYLE = """
:root { --paper: #fdfdfb; --ink: #1d2430; --faint: #e2e4e6; --soft: #5d6673;
  --s0: #2456a6; --s1: #c4512d; --s2: #2d8659; --s3: #8656a8; --s4: #a67c1a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e5e8ec;
  --faint: #2d333b; --soft: #98a1ad; --s0: #7fa8ee; --s1: #ef8d6c; --s2: #6cc494;
  --s3: #c39be0; --s4: #dcb45a; } }
body { background: var(--paper); color: var(--ink); margin: 2.5rem auto;
  max-width: 62rem; padding: 0 1.2rem; font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin-bottom: .2rem }
h2 { font-size: 1.2rem; margin-top: 2.4rem }
p, figcaption { max-width: 46rem } .soft, figcaption { color: var(--soft) }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr));
  gap: .8rem; margin: 1.4rem 0 } .facts div { border-top: 3px solid var(--s0);
  padding-top: .4rem } .facts b { display: block; font-size: 1.45rem }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr));
  gap: 1.4rem } figure { margin: 0 } svg { width: 100%; height: auto }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
table { border-collapse: collapse; font-size: .92rem } td, th { padding: .22rem .8rem;
  text-align: right; border-bottom: 1px solid var(--faint) }
td:first-child, th:first-child { text-align: left }
.strip { display: flex; flex-wrap: wrap; gap: .7rem; margin: .5rem 0 1rem }
.strip figure { width: 84px; text-align: center } .strip img { width: 72px;
  height: 72px; image-rendering: pixelated; border: 1px solid var(--faint) }
.strip figcaption { font-size: .78rem; line-height: 1.25 }
.strip .query img { border: 3px solid var(--s1) }
"""


def _escape(text: object) -> str:
    return html.escape(str(text))


def facts(pairs: Mapping[str, str]) -> str:
    """A row of large numbers with what each one is."""
    cells = (f"<div><b>{_escape(v)}</b>{_escape(k)}</div>" for k, v in pairs.items())
    return f'<div class="facts">{"".join(cells)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; the first column is text, the others numbers."""

    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_escape(c)}</{tag}>" for c in cells) + "</tr>"

    return (
        "<table>"
        + line(head, "th")
        + "".join(line(row, "td") for row in rows)
        + "</table>"
    )


def figure(picture: str, caption: str) -> str:
    """A chart with the sentence that says what to see in it."""
    return f"<figure>{picture}<figcaption>{_escape(caption)}</figcaption></figure>"


def strip(pictures: Sequence[tuple[str, str]], *, query: bool = False) -> str:
    """Small pictures in a row, each with a caption; the first may be the question."""
    cells = []
    for number, (source, caption) in enumerate(pictures):
        kind = ' class="query"' if query and number == 0 else ""
        cells.append(
            f'<figure{kind}><img src="{source}" alt="{_escape(caption)}">'
            f"<figcaption>{_escape(caption)}</figcaption></figure>"
        )
    return f'<div class="strip">{"".join(cells)}</div>'


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it."""
    return f"<h2>{_escape(title)}</h2>{''.join(parts)}"


def paragraph(text: str) -> str:
    """A paragraph of prose."""
    return f"<p>{_escape(text)}</p>"


def document(title: str, subtitle: str, *sections: str) -> str:
    """The whole page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{_escape(title)}</h1><p class="soft">{_escape(subtitle)}</p>'
        f"{''.join(sections)}</body></html>\n"
    )


def accuracy_chart(accuracy: Mapping[str, Any]) -> str:
    """Accuracy over the radius: the picture of the tour."""
    eps = accuracy["eps"]
    clean = [accuracy["clean"]] * len(eps)
    return line_chart(
        "Accuracy of the trained network over the radius of the perturbation",
        {
            "clean": Series(eps, clean, dashed=True),
            "under PGD attack": Series(eps, accuracy["attacked"]),
            "certified": Series(eps, accuracy["certified"]),
        },
        x_label="radius eps, share of the pixel range",
        y_label="share of the test set",
    )


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


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _headline(findings: Mapping[str, Any]) -> str:
    accuracy, wire = findings["accuracy"], findings["wire"]
    at = accuracy["eps"].index(findings["settings"]["eps"])
    return facts(
        {
            "clean accuracy": _percent(accuracy["clean"]),
            f"certified at eps = {accuracy['eps'][at]:g}": _percent(
                accuracy["certified"][at]
            ),
            "fewer bytes exchanged": f"{wire['ratio']:.0f} x",
            "dense memory a device": _percent(findings["memory"]["dense_share"]),
            "label errors found in the top 20 %": _percent(
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
    return section(
        "bound: what is certain",
        paragraph(
            "The loss holds a CROWN-IBP bound of the worst logits within eps, so the "
            "network learns to be provable. Between the attacked and the certified "
            "line lies what no one knows: no attack was found and no proof either."
        ),
        '<div class="row">',
        figure(
            accuracy_chart(accuracy),
            "Right on the test set: as given, under 20 steps of PGD, and proven for "
            "every image within eps.",
        ),
        figure(curve, "The mixed loss while the radius grows."),
        "</div>",
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
    return section(
        "shard: what is sent and what is held",
        '<div class="row">',
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
        figure(
            bar_chart(
                "Parameter bytes a device",
                {
                    "data parallel": memory["data_parallel_bytes"] / 1e3,
                    "plan": memory["plan_bytes"] / 1e3,
                    "measured": memory["measured_bytes"] / 1e3,
                },
                unit="kB",
            ),
            "Parameters that a device holds: replicated, as the plan predicts, and "
            "as measured on the device.",
        ),
        "</div>",
        f"<pre>{_escape(memory['table'])}</pre>",
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
    return section(
        "influence: which labels are wrong",
        paragraph(
            f"{labels['planted']} of {labels['ranked']} training labels were replaced "
            "before training. Ranked by self-influence, the first ones are shown."
        ),
        '<div class="row">',
        figure(chart, "Found when the training set is inspected in that order."),
        f"<div>{strip(findings['pictures']['suspicious'])}</div>",
        "</div>",
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
