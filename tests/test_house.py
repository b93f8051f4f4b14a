"""The house rules that a program can see: sizes, names, layers, documented names."""

import ast
import inspect
from pathlib import Path

import pytest

import jaxmethods

ROOT = Path(jaxmethods.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
VAGUE = {"utils", "util", "helpers", "helper", "misc", "common", "base", "tools", "lib"}


def code_lines(function):
    first = function.body[0]
    doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.end_lineno - (first.end_lineno if doc else function.lineno)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_small_rooms(path):
    text = path.read_text()
    assert text.count("\n") <= 500
    assert path.stem.strip("_") not in VAGUE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(node) <= 50, f"{node.name}: split it"


def public_names():
    for name in jaxmethods.__all__[1:]:
        yield from names_of(getattr(jaxmethods, name), name)


def names_of(package, name):
    for member, value in sorted(vars(package).items()):
        if member.startswith("_"):
            continue
        here = getattr(value, "__module__", "").startswith("jaxmethods")
        if callable(value) and here:
            yield f"{name}.{member}", value
        # A package inside, such as bound.x.y, but no module that is imported.
        elif getattr(value, "__name__", "") == f"{package.__name__}.{member}":
            if hasattr(value, "__path__"):
                yield from names_of(value, f"{name}.{member}")


PUBLIC = dict(public_names())


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented_with_an_example(name):
    value = PUBLIC[name]
    text = value.__doc__ or ""
    assert len(text.splitlines()[0]) <= 80
    if isinstance(value, type):  # a class explains what it holds
        assert "Attributes:" in text or ">>>" in text, f"{name} explains no field"
        return
    assert ">>>" in text, f"{name} has no example"
    if inspect.signature(value).parameters:
        assert "Args:" in text, f"{name} explains no argument"


def test_the_face_is_what_it_says():
    assert set(jaxmethods.__all__) <= set(dir(jaxmethods))
    for name in jaxmethods.__all__:
        assert getattr(jaxmethods, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'sketches'"):
        _ = jaxmethods.sketches
