"""Paths and `where`; argument checks say what was got, what is wanted, what to do."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import core


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


TREE = {"layers": [Layer(jnp.ones((2, 2)), jnp.ones(2))], "scale": jnp.ones(())}
PATHS = [("layers", 0, "kernel"), ("layers", 0, "bias"), ("scale",)]


def test_paths_are_plain_names():
    assert core.leaf_paths(TREE) == PATHS


@pytest.mark.parametrize(
    "where, chosen",
    [
        (None, [True, True, True]),
        ([("layers",)], [True, True, False]),
        ([("layers", 0, "bias"), ("scale",)], [False, True, True]),
        (["scale"], [False, False, True]),
        (lambda path: path[-1] == "kernel", [True, False, False]),
    ],
)
def test_where_chooses(where, chosen):
    assert core.choose_paths(where, PATHS) == chosen


@pytest.mark.parametrize(
    "where, hint",
    [
        ([("head",)], r"\('head',\), which is no parameter.*'scale'"),
        (lambda path: False, "nothing was chosen"),
        ([], "nothing was chosen"),
    ],
)
def test_where_that_chooses_nothing_lists_the_paths(where, hint):
    with pytest.raises(ValueError, match=hint):
        core.choose_paths(where, PATHS)


@pytest.mark.parametrize(
    "check, error, hint",
    [
        (
            lambda: core.check_floating(np.ones((2, 3), int), "x"),
            TypeError,
            r"int32\[2,3\]; .* cast it with \.astype",
        ),
        (lambda: core.check_floating(1j, "x"), TypeError, "complex.*parts apart"),
        (lambda: core.check_floating("a", "x"), TypeError, "x is str 'a'; wanted an"),
        (lambda: core.check_choice("l7", ("l2", "linf"), "norm"), ValueError, "'l7'"),
        (lambda: core.check_integer(9, "bits", 2, 8), ValueError, "9; wanted 2..8"),
        (lambda: core.check_integer(0, "k", 1), ValueError, "0; wanted at least 1"),
        (lambda: core.check_integer(True, "k", 1), TypeError, "Python int"),
        (lambda: core.check_integer(2.0, "k", 1), TypeError, "float 2.0"),
        (lambda: core.check_nonnegative(-0.1, "eps"), ValueError, "eps is -0.1"),
        (lambda: core.check_nonnegative(np.nan, "eps"), ValueError, "no NaN"),
        (lambda: core.check_nonnegative(1j, "eps"), TypeError, "1j; wanted a real"),
        (lambda: core.check_key(0), TypeError, "jax.random.key"),
    ],
)
def test_checks_refuse_with_a_hint(check, error, hint):
    with pytest.raises(error, match=hint):
        check()


def test_checks_pass_what_is_right_and_never_look_at_tracers():
    assert core.check_integer(np.int64(3), "bits", 2, 8) == 3
    core.check_key(jax.random.key(0))
    jax.jit(lambda e: core.check_nonnegative(e, "eps") or e)(-1.0)
    assert core.check_floating(1.5, "x").dtype == jnp.float32


def test_a_missing_rule_names_primitive_line_and_remedy():
    jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x))(1.0)
    error = core.missing_rule("bound.ibp", jaxpr.eqns[0], "register one.")
    for part in ("bound.ibp", "'sin'", "test_paths_checks.py", "register one."):
        assert part in str(error)
