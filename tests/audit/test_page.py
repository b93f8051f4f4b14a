"""Charts, pictures, the page and the progress bar: plain text in, plain text out."""

import io
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest

from jaxmethods.audit.charts import Series, bar_chart, line_chart, ticks
from jaxmethods.audit.page import document, section, strip, table
from jaxmethods.audit.pictures import data_uri, png
from jaxmethods.audit.progress import progress


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
