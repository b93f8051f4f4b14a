"""The sections of a report that say how far a model can be trusted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Series, bar_chart, line_chart
from .page import figure, paragraph, row, section, strip

# After a share of the inputs.
BLIND = "are right and have no gradient: attacks see nothing there, they may be wrong"


def percent(share: float) -> str:
    """A share as it is written on a page.

    Example:
        >>> percent(0.125)
        '12.5 %'
    """
    return f"{100 * share:.1f} %"


def digits(values: Sequence[float]) -> list[str]:
    """Numbers of a column with as many decimals each: three digits at the median.

    Example:
        >>> digits([2240.3, 972.1, 8.46])
        ['2,240', '972', '8']
    """
    sizes = sorted(abs(v) for v in values if v and math.isfinite(v))
    power = math.floor(math.log10(sizes[len(sizes) // 2])) if sizes else 0
    if not -5 < power < 9:
        return [f"{v:.2e}" for v in values]
    return [f"{v:,.{max(0, 2 - power)}f}" for v in values]


def accuracy_chart(
    eps: Sequence[float],
    clean: float | None,
    shares: Mapping[str, Sequence[float]],
    *,
    proven: str = "certified",
) -> str:
    """Accuracy over the radius of the perturbation.

    Between two radii nothing was computed. What is drawn there holds all the same: what
    is proven at the larger radius holds before it, and what was attacked at the
    smaller one fails after it.

    Args:
        eps: The radii, ascending.
        clean: The accuracy without one; None where it is not known.
        shares: Name -> a share a radius.
        proven: The name of the shares that are proven; others are left by an attack.
    """
    start = [] if clean is None or 0.0 in eps else [clean]
    radii = [0.0] * len(start) + list(eps)
    lines = {
        name: Series(
            radii, [*start, *values], between="pre" if name == proven else "post"
        )
        for name, values in shares.items()
    }
    if clean is not None:
        lines = {"clean": Series(radii, [clean] * len(radii), dashed=True), **lines}
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
    text: str,
    pictures: Sequence[tuple[str, str]],
    *beside: str,
    title: str = "influence: which labels are wrong",
) -> str:
    """The examples whose labels look wrong.

    Args:
        text: How they were found.
        pictures: (source, caption) of the first of them; may be none.
        *beside: Figures or tables next to them.
        title: Of the section.
    """
    shown = [f"<div>{strip(pictures)}</div>"] if pictures else []
    return section(title, paragraph(text), row(*beside, *shown))


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


def without_alike(
    layouts: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Ways to spread a training, without those that come to the first one.

    Args:
        layouts: As the JSON of an audit has them, the first data parallel.

    Returns:
        Those that differ from the first, and it; the names of the others.
    """

    def numbers(plan: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(v for k, v in plan.items() if k not in ("name", "table"))

    first, *others = layouts
    alike = [plan["name"] for plan in others if numbers(plan) == numbers(first)]
    return [plan for plan in layouts if plan["name"] not in alike], alike
