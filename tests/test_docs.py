"""The README is so: its code runs, its links lead somewhere, its tables hold."""

import re
from pathlib import Path

import pytest

import jaxmethods

from .test_composition import CELLS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NAMES = ("sketch", "quantize", "bound", "influence", "shard")


def test_the_examples_run_as_printed():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 8
    code = "\n".join(blocks).replace("'", '"')
    exec(compile(code, "README.md", "exec"), {})
    assert "assert bool" in code


def test_the_two_commands_are_one_line_each():
    commands = re.findall(r"```sh\n(.*?)```", README, re.S)
    tour, tests = (command.strip() for command in commands)
    assert tour.endswith("-m jaxmethods tour") and tests.endswith("/pytest")
    assert all(len(c.splitlines()) == 1 and "&&" in c for c in (tour, tests))
    assert README.index("```sh") < 1500  # the first screen


def test_links_inside_the_repository_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert "docs/accuracy.svg" in links
    for link in links:
        assert (ROOT / link).exists(), link


def rows(heading):
    part = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_methods_are_counted():
    here = sum(row[2] == "here" for row in rows("The methods"))
    words = {13: "Thirteen", 14: "Fourteen", 15: "Fifteen", 16: "Sixteen"}
    assert f"{words[here]} published methods" in README


def test_the_index_has_all_methods_and_says_what_is_here():
    index = rows("The methods")
    assert len(index) == 31
    assert len({re.search(r"abs/(\S+?)\)", row[0])[1] for row in index}) == 31
    for _, functions, status in index:
        assert status in ("here", "planned")
        names = re.findall(r"`(\w+)\.(\w+)`", functions)
        found = [hasattr(getattr(jaxmethods, p, None), name) for p, name in names]
        assert all(found) if status == "here" else not any(found), functions


@pytest.mark.parametrize("row, name", list(enumerate(NAMES)))
def test_the_matrix_is_the_tests(row, name):
    cells = rows("What composes with what")[row]
    assert cells[0] == f"**{name}**"
    for of, cell in zip(NAMES, cells[1:], strict=True):
        if (name, of) in CELLS:
            assert cell == "✓"
        else:
            assert cell == "-"
