"""Line and bar charts as inline SVG: a page that needs no library and no network.

Colours follow the page's CSS variables `--ink`, `--faint` and `--s0` .. `--s4`.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 460, 306
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 30, 44
_FIRST_BAR = 14


class Series(NamedTuple):
    """One line of a chart: its points, and whether it is drawn dashed."""

    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover an interval, about `wanted` of them.

    Example:
        >>> ticks(0, 0.97)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    high = high if high > low else low + 1.0
    span = high - low
    power = 10 ** math.floor(math.log10(span / wanted))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - wanted))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _label(value: float) -> str:
    return f"{value:g}"


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(words)}</text>"
    )


def _frame(body: list[str], title: str, height: float = _HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{html.escape(title)}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{html.escape(title)}</title>{''.join(body)}</svg>"
    )


def line_chart(
    title: str, series: Mapping[str, Series], *, x_label: str, y_label: str
) -> str:
    """Draws lines over a common pair of axes, with a legend above.

    Args:
        title: What the chart shows, for readers who do not see it.
        series: Name of a line -> its points.
        x_label: With the unit.
        y_label: With the unit.

    Returns:
        An `<svg>` element.
    """
    points = [
        (x, y)
        for line in series.values()
        for x, y in zip(line.x, line.y, strict=True)
        if math.isfinite(y)
    ]
    x_ticks = ticks(min(p[0] for p in points), max(p[0] for p in points))
    y_ticks = ticks(min(0.0, *(p[1] for p in points)), max(p[1] for p in points))

    def place(x: float, y: float) -> tuple[float, float]:
        u = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        v = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        left = _LEFT + u * (_WIDTH - _LEFT - _RIGHT)
        return left, _HEIGHT - _BOTTOM - v * (_HEIGHT - _TOP - _BOTTOM)

    body = _axes(x_ticks, y_ticks, place, x_label, y_label)
    for number, (name, line) in enumerate(series.items()):
        path = " ".join(
            f"{px:.1f},{py:.1f}"
            for px, py in (
                place(x, y)
                for x, y in zip(line.x, line.y, strict=True)
                if math.isfinite(y)
            )
        )
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        colour = f"var(--s{number % 5})"
        body.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="2"{dash}/>'
        )
        body.append(_legend(number, name, colour, dash))
    return _frame(body, title)


def standalone(chart: str) -> str:
    """The chart as a file of its own, with the colours that a page would give it."""
    style = (
        ":root { --ink: #1d2430; --faint: #e2e4e6; --s0: #2456a6; --s1: #c4512d; "
        "--s2: #2d8659; background: #fdfdfb } "
        "text { fill: var(--ink); font: 12px system-ui, sans-serif }"
    )
    return chart.replace("<title>", f"<style>{style}</style><title>", 1) + "\n"


def _legend(number: int, name: str, colour: str, dash: str) -> str:
    x, y = _LEFT + 146 * number, 16
    return (
        f'<line x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" '
        f'stroke-width="2"{dash}/>' + _text(x + 28, y, name, "start")
    )


def _axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    place: Callable[[float, float], tuple[float, float]],
    x_label: str,
    y_label: str,
) -> list[str]:
    body = []
    bottom = _HEIGHT - _BOTTOM
    for y in y_ticks:
        _, py = place(x_ticks[0], y)
        body.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py:.1f}" y2="{py:.1f}" '
            'stroke="var(--faint)"/>'
        )
        body.append(_text(_LEFT - 6, py + 4, _label(y), "end"))
    for x in x_ticks:
        px, _ = place(x, y_ticks[0])
        body.append(_text(px, bottom + 16, _label(x)))
    body.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label))
    middle = (_TOP + bottom) / 2
    body.append(
        f'<g transform="rotate(-90 12 {middle:.0f})">{_text(12, middle, y_label)}</g>'
    )
    return body


def bar_chart(title: str, bars: Mapping[str, float], *, unit: str) -> str:
    """Draws one horizontal bar a name, with its value written beside it.

    Args:
        title: What the chart shows, for readers who do not see it.
        bars: Name -> value, 0 or more.
        unit: Written after each value.

    Returns:
        An `<svg>` element.
    """
    most = max(bars.values()) or 1.0
    room, left = _WIDTH - 150 - 110, 150
    body = []
    for number, (name, value) in enumerate(bars.items()):
        y = _FIRST_BAR + 30 * number
        width = max(room * value / most, 1.0)
        body.append(
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="20" rx="2" '
            f'fill="var(--s{number % 5})"/>'
        )
        body.append(_text(left - 8, y + 14, name, "end"))
        body.append(_text(left + width + 6, y + 14, f"{value:,.4g} {unit}", "start"))
    return _frame(body, title, _FIRST_BAR + 30 * len(bars))
