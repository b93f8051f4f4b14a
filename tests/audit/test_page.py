"""Charts, pictures, the page and the progress bar: plain text in, plain text out."""

import io
import itertools
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest

from jaxmethods.audit.charts import Series, bar_chart, line_chart, ticks
from jaxmethods.audit.page import document, section, strip, table
from jaxmethods.audit.pictures import data_uri, png
from jaxmethods.audit.progress import progress
from jaxmethods.audit.sections import accuracy_chart, digits, without_alike


@pytest.mark.parametrize("low, high", [(0, 1), (0, 0.13), (-3, 40), (0, 1e6), (2, 2)])
def test_ticks_cover_the_interval_in_equal_round_steps(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 9
    np.testing.assert_allclose(np.diff(marks), marks[1] - marks[0], rtol=1e-9)


def test_a_line_chart_is_an_image_that_holds_its_points():
    series = {"a & b": Series([0, 1, 2], [0, 4, 2]), "gap": Series([0, 1], [1, np.nan])}
    root = ET.fromstring(line_chart("title", series, x_label="x", y_label="y"))
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    first = [tuple(map(float, p.split(","))) for p in lines[0].get("points").split()]
    heights = [y for _, y in first]
    assert len(first) == 3 and heights[1] < heights[2] < heights[0]  # y grows downwards
    assert len(lines[1].get("points").split()) == 1  # what is not finite is left out
    assert "a & b" in "".join(root.itertext())


def _placed(chart):
    root = ET.fromstring(chart)
    found = {kind: [] for kind in ("text", "polyline", "circle")}
    for element in root.iter():
        found.setdefault(element.tag.split("}")[1], []).append(element)
    return float(root.get("viewBox").split()[2]), found


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize(
    "name", ["clean", "under PGD attack", "Certified By CROWN", "bod" * 6, "w" * 90]
)
def test_every_name_of_a_legend_fits_and_none_overlap(name, count):
    names = [f"{number} {name}" for number in range(count)]
    series = {n: Series([0, 1], [0, 1]) for n in names}
    width, found = _placed(line_chart("t", series, x_label="x", y_label="y"))
    legend = [e for e in found["text"] if e.get("text-anchor") == "start"]
    assert len(legend) == count
    rows = {}
    for text in legend:
        # At most and at least, in DejaVu Sans, a wide font, at 12 px.
        most = sum(
            11.9 if c in "wW…" else 8.9 if c.isupper() else 7.6 for c in text.text
        )
        least = sum(7.3 if c in "bod" else 3.0 for c in text.text)
        start = float(text.get("x"))
        assert start + most <= width
        rows.setdefault(text.get("y"), []).append((start, start + least))
    for places in rows.values():
        # A line of 28 is before each name.
        pairs = itertools.pairwise(places)
        assert all(start - 28 > end for (_, end), (start, _) in pairs)
    ends = [p.get("points").split()[-1] for p in found["polyline"]]
    assert max(map(float, rows)) < min(float(e.split(",")[1]) for e in ends)


def test_steps_hold_the_height_of_the_point_that_is_sure():
    chart = line_chart(
        "t",
        {
            "before": Series([0, 1, 2], [4, 2, 1], between="pre"),
            "after": Series([0, 1, 2], [4, 2, 1], between="post"),
            "alone": Series([0, 1, 2], [4, 2, 1], between="nothing"),
        },
        x_label="x",
        y_label="y",
    )
    _, found = _placed(chart)
    (before, after) = (
        [tuple(map(float, p.split(","))) for p in e.get("points").split()]
        for e in found["polyline"]
    )
    points = before[::2]
    assert after[::2] == points and len(points) == 3
    assert before[1] == (points[0][0], points[1][1])  # the next height, at once
    assert after[1] == (points[1][0], points[0][1])  # its own, up to the next
    marks = [e for e in found["circle"] if e.get("r") == "3"]
    assert len(marks) == 9 + 1  # and one in the legend, where there is no line
    with pytest.raises(ValueError, match="between is 'mid'; wanted one of"):
        line_chart("t", {"a": Series([0], [1], between="mid")}, x_label="", y_label="")


def test_the_accuracy_chart_starts_at_clean_and_overstates_no_radius():
    eps, shares = [0.1, 0.3], {"PGD": [0.6, 0.2], "certified": [0.4, 0.1]}
    _, found = _placed(accuracy_chart(eps, 0.8, shares))
    clean, attacked, proven = (
        [tuple(map(float, p.split(","))) for p in e.get("points").split()]
        for e in found["polyline"]
    )
    assert attacked[0] == proven[0] == clean[0]  # at radius 0
    assert len(attacked) == len(proven) == 5
    # Between the radii 0.1 and 0.3 the proof of 0.3 holds and the attack of 0.1.
    assert proven[3] == (proven[2][0], proven[4][1])
    assert attacked[3] == (attacked[4][0], attacked[2][1])
    _, found = _placed(accuracy_chart(eps, None, shares))
    assert len(found["polyline"]) == 2 and len(found["circle"]) == 4
    _, found = _placed(accuracy_chart([0.0, 0.3], 0.8, shares))
    assert len(found["circle"]) == 4


@pytest.mark.parametrize(
    "values, wanted",
    [
        ([2240.3, 972.1, 8.46], ["2,240", "972", "8"]),
        ([12.345, 3.2101, 0.01], ["12.35", "3.21", "0.01"]),
        ([3e-9, 2e-9], ["3.00e-09", "2.00e-09"]),
        ([float("inf"), 2.0], ["inf", "2.00"]),
        ([0.0], ["0.00"]),
        ([], []),
    ],
)
def test_a_column_has_the_same_decimals_throughout(values, wanted):
    assert digits(values) == wanted


def test_layouts_that_come_to_the_first_are_named_alone():
    def plan(name, held):
        return {"name": name, "memory_bytes": held, "num_split": 0, "table": name}

    plans = [plan("data", 4), plan("a", 4), plan("b", 2), plan("c", 4)]
    rows, alike = without_alike(plans)
    assert [p["name"] for p in rows] == ["data", "b"] and alike == ["a", "c"]


def test_bars_are_as_long_as_their_values():
    root = ET.fromstring(bar_chart("t", {"one": 1, "four": 4}, unit="kB"))
    widths = [float(e.get("width")) for e in root.iter() if e.tag.endswith("rect")]
    np.testing.assert_allclose(widths[1] / widths[0], 4, rtol=0.02)


def test_png_holds_the_pixels():
    image = np.array([[0.0, 1.0, 0.5], [0.2, 0.0, 1.0]])
    raw = png(image)
    start = raw.index(b"IDAT") + 4
    size = int.from_bytes(raw[start - 8 : start - 4], "big")
    rows = zlib.decompress(raw[start : start + size])
    pixels = np.frombuffer(rows, np.uint8).reshape(2, 4)[:, 1:]
    np.testing.assert_array_equal(pixels, np.round(255 * (1 - image)))
    assert data_uri(image).startswith("data:image/png;base64,")


def test_the_page_needs_nothing_from_outside_and_escapes_text():
    pictures = [("data:image/png;base64,", "a 3 <was> 5")]
    page = document(
        "A & B", "x < y", section("s", table(["n"], [["<b>"]]), strip(pictures))
    )
    assert "A &amp; B" in page and "&lt;was&gt;" in page and "&lt;b&gt;" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("live", [False, True], ids=["file", "terminal"])
def test_progress_counts_from_where_an_earlier_run_stopped(live):
    stream = io.StringIO()
    stream.isatty = lambda: live
    items = list(progress(range(3, 5), "training", 5, start=3, stream=stream))
    assert items == [3, 4]
    text = stream.getvalue()
    assert "training" in text and "done in" in text
    assert ("5/5" in text) == live
