"""Policies: what they cover, and what they refuse."""

import jax.numpy as jnp
import pytest

from jaxmethods.quantize import Policy, psq, ptq


def test_everything_is_exact_and_covered_by_default():
    policy = Policy()
    fields = (policy.activation, policy.weight, policy.input_grad, policy.weight_grad)
    assert fields == (None,) * 4
    assert policy.covers(("w",)) and policy.covers(())


def test_a_path_covers_its_subtree():
    policy = Policy(where=[("block", 0), ["head"]])
    assert policy.covers(("block", 0, "kernel")) and policy.covers(("head",))
    assert not policy.covers(("block", 1, "kernel")) and not policy.covers(("block",))


def test_a_predicate_decides():
    policy = Policy(where=lambda path: path[-1] == "kernel")
    assert policy.covers(("a", "kernel")) and not policy.covers(("a", "bias"))


def test_policies_are_frozen_values():
    policy = Policy(weight=ptq(8), where=[("w1",)])
    assert policy == Policy(weight=ptq(8), where=(("w1",),))
    assert hash(policy) == hash(Policy(weight=ptq(8), where=[("w1",)]))
    assert policy != Policy(weight=ptq(4), where=[("w1",)])
    with pytest.raises(AttributeError, match="weight"):
        policy.weight = psq(4)


@pytest.mark.parametrize("name", ["activation", "weight", "input_grad", "weight_grad"])
def test_a_foreign_quantizer_is_refused(name):
    with pytest.raises(TypeError, match=rf"{name} is .*; wanted a quantizer such as"):
        Policy(**{name: jnp.round})
    with pytest.raises(TypeError, match=rf"{name} is int 8; wanted a quantizer"):
        Policy(**{name: 8})


@pytest.mark.parametrize("where", ["w1", ["w1"], ("w1",), 3])
def test_a_where_without_paths_is_refused(where):
    with pytest.raises(TypeError, match=r"wanted a list of key paths such as"):
        Policy(where=where)
