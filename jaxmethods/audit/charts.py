"""Line and bar charts as inline SVG: a page that needs no library and no network.

Colours follow the page's CSS variables `--ink`, `--faint` and `--s0` .. `--s4`.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

_WIDTH, _HEIGHT = 460, 306
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 30, 44
_FIRST_BAR = 14
_ROW, _SAMPLE, _GAP = 18, 28, 18  # of a legend: height, line before a name, space after
# The widths of DejaVu Sans at 12 px, which is wider than what most systems show.
_NARROW, _LETTER, _CAPITAL, _BROAD = 5.0, 7.7, 9.5, 12.0
_BETWEEN = ("line", "pre", "post", "nothing")


class Series(NamedTuple):
    """One line of a chart.

    Attributes:
        x: Of its points, in the order in which they are joined.
        y: As many; what is not finite is left out.
        dashed: Whether it is drawn dashed.
        between: What is drawn between a point and the next: "line" joins them; "pre"
            keeps the height of the next point, "post" that of the point itself, as the
            steps of matplotlib do; "nothing" leaves the points alone. But for "line"
            each point is marked.
    """

    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    between: str = "line"


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


def _frame(body: list[str], title: str, height: float) -> str:
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
    legend, rows = _legend(series)
    top, height = _TOP + _ROW * (rows - 1), _HEIGHT + _ROW * (rows - 1)
    points = [point for line in series.values() for point in _finite(line)]
    x_ticks = ticks(min(p[0] for p in points), max(p[0] for p in points))
    y_ticks = ticks(min(0.0, *(p[1] for p in points)), max(p[1] for p in points))

    def place(x: float, y: float) -> tuple[float, float]:
        u = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        v = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        left = _LEFT + u * (_WIDTH - _LEFT - _RIGHT)
        return left, height - _BOTTOM - v * (height - top - _BOTTOM)

    body = _axes(x_ticks, y_ticks, place, x_label, y_label)
    for number, line in enumerate(series.values()):
        placed = [place(x, y) for x, y in _finite(line)]
        body += _drawn(placed, line, f"var(--s{number % 5})")
    return _frame(legend + body, title, height)


def _finite(line: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]


def _drawn(
    placed: Sequence[tuple[float, float]], line: Series, colour: str
) -> list[str]:
    """The line through points of the page, and a mark on each where it has steps."""
    if line.between not in _BETWEEN:
        raise ValueError(f"between is {line.between!r}; wanted one of {_BETWEEN}.")
    body = []
    if line.between != "nothing":
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in _stepped(placed, line.between))
        body.append(f'<polyline points="{path}" fill="none" {_stroke(line, colour)}/>')
    if line.between != "line":
        body += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            for x, y in placed
        ]
    return body


def _stepped(
    placed: Sequence[tuple[float, float]], between: str
) -> list[tuple[float, float]]:
    corners = list(placed[:1])
    for (x0, y0), (x1, y1) in pairwise(placed):
        corner = {"pre": [(x0, y1)], "post": [(x1, y0)]}.get(between, [])
        corners += [*corner, (x1, y1)]
    return corners


def _stroke(line: Series, colour: str) -> str:
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    return f'stroke="{colour}" stroke-width="2"{dash}'


def standalone(chart: str) -> str:
    """The chart as a file of its own, with the colours that a page would give it."""
    style = (
        ":root { --ink: #1d2430; --faint: #e2e4e6; --s0: #2456a6; --s1: #c4512d; "
        "--s2: #2d8659; --s3: #8656a8; --s4: #a67c1a; background: #fdfdfb } "
        "text { fill: var(--ink); font: 12px system-ui, sans-serif }"
    )
    return chart.replace("<title>", f"<style>{style}</style><title>", 1) + "\n"


def _legend(series: Mapping[str, Series]) -> tuple[list[str], int]:
    """The names of lines, in as many rows as they need, and how many rows that are."""
    body, row, x = [], 0, float(_LEFT)
    for number, (name, line) in enumerate(series.items()):
        name = _shortened(name, _WIDTH - _RIGHT - _LEFT - _SAMPLE)
        width = _SAMPLE + _text_width(name)
        if x > _LEFT and x + width > _WIDTH - _RIGHT:
            row, x = row + 1, float(_LEFT)
        y, colour = 16 + _ROW * row, f"var(--s{number % 5})"
        if line.between == "nothing":
            sample = f'<circle cx="{x + 11:.1f}" cy="{y - 4}" r="3" fill="{colour}"/>'
        else:
            sample = (
                f'<line x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y - 4}" y2="{y - 4}" '
                f"{_stroke(line, colour)}/>"
            )
        body.append(sample + _text(x + _SAMPLE, y, name, "start"))
        x += width + _GAP
    return body, row + 1


def _text_width(words: str) -> float:
    """How wide a text is at most, in units of the chart."""
    return sum(map(_letter_width, words))


def _letter_width(letter: str) -> float:
    if letter in " .,:;!|'()[]fijlrtI":
        return _NARROW
    if letter in "mwMW%@…":
        return _BROAD
    return _CAPITAL if letter.isupper() else _LETTER


def _shortened(words: str, width: float) -> str:
    while _text_width(words) > width:
        words = words.removesuffix("…")[:-1].rstrip() + "…"
    return words


def _axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    place: Callable[[float, float], tuple[float, float]],
    x_label: str,
    y_label: str,
) -> list[str]:
    body = []
    _, bottom = place(x_ticks[0], y_ticks[0])
    _, top = place(x_ticks[0], y_ticks[-1])
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
    body.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + _BOTTOM - 8, x_label))
    middle = (top + bottom) / 2
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
