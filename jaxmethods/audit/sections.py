"""The sections of a report that say how far a model can be trusted."""

from collections.abc import Mapping, Sequence

from .charts import Series, bar_chart, line_chart
from .page import figure, paragraph, row, section, strip


def percent(share: float) -> str:
    """A share as it is written on a page.

    Example:
        >>> percent(0.125)
        '12.5 %'
    """
    return f"{100 * share:.1f} %"


def accuracy_chart(
    eps: Sequence[float], clean: float | None, shares: Mapping[str, Sequence[float]]
) -> str:
    """Accuracy over the radius of the perturbation.

    Args:
        eps: The radii.
        clean: The accuracy without one; None where it is not known.
        shares: Name -> a share a radius.
    """
    lines = {name: Series(eps, values) for name, values in shares.items()}
    if clean is not None:
        lines = {"clean": Series(eps, [clean] * len(eps), dashed=True), **lines}
    return line_chart(
        "Accuracy of the trained network over the radius of the perturbation",
        lines,
        x_label="radius eps, in units of the inputs",
        y_label="share of the inputs",
    )


def robustness(title: str, text: str, chart: str, caption: str, *beside: str) -> str:
    """What holds within a radius: what no attack turned, and what is proven.

    Args:
        title: Of the section.
        text: What is shown.
        chart: As `accuracy_chart` draws it.
        caption: What to see in it.
        *beside: Figures or tables next to it.
    """
    return section(title, paragraph(text), row(figure(chart, caption), *beside))


def suspicious_labels(
    text: str, pictures: Sequence[tuple[str, str]], *beside: str
) -> str:
    """The examples whose labels look wrong.

    Args:
        text: How they were found.
        pictures: (source, caption) of the first of them; may be none.
        *beside: Figures or tables next to them.
    """
    shown = [f"<div>{strip(pictures)}</div>"] if pictures else []
    return section(
        "influence: which labels are wrong", paragraph(text), row(*beside, *shown)
    )


def held_bytes(bars: Mapping[str, float], caption: str) -> str:
    """A chart of the bytes that a device holds.

    Args:
        bars: Name -> bytes.
        caption: What to see in it.
    """
    chart = bar_chart(
        "Bytes a device holds", {n: b / 1e3 for n, b in bars.items()}, unit="kB"
    )
    return figure(chart, caption)
