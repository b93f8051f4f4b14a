"""Checkpoints: stacked, listed, or of an orbax manager."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxmethods.influence import forms, tracin
from jaxmethods.influence._checkpoints import one_by_one, stack_checkpoints

TREE = {"w": jnp.arange(12.0).reshape(3, 2, 2), "b": jnp.arange(3.0)}
RATES = jnp.asarray([0.1, 0.2, 0.3])


def at(k):
    return jax.tree.map(lambda x: x[k], TREE)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_list_is_stacked():
    assert_same(stack_checkpoints([at(k) for k in range(3)], RATES)[0], TREE)
    assert_same(stack_checkpoints(TREE, RATES)[0], TREE)


def test_a_list_holds_checkpoints_a_tuple_is_a_tree():
    layers = [(at(k)["w"], at(k)["b"]) for k in range(3)]
    params, _ = stack_checkpoints([[layer, layer] for layer in layers], RATES)
    assert_same(params, [(TREE["w"], TREE["b"])] * 2)
    assert_same(stack_checkpoints((TREE, TREE), RATES)[0], (TREE, TREE))


@pytest.mark.filterwarnings("default")  # What orbax warns of is not ours.
def test_a_manager_in_the_order_of_its_steps(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        for step, k in ((7, 0), (30, 1), (200, 2)):
            manager.save(step, args=ocp.args.StandardSave(at(k)))
        manager.wait_until_finished()
        assert_same(stack_checkpoints(manager, RATES)[0], TREE)
    with ocp.CheckpointManager(tmp_path) as reopened:
        assert_same(stack_checkpoints(reopened, RATES)[0], TREE)
        series = one_by_one(reopened)
        assert series.count == 3
        for k in (0, 2, 2, 1):
            assert_same(series.at(k), at(k))


@pytest.mark.filterwarnings("default")  # What orbax warns of is not ours.
def test_a_manager_of_another_kind_is_told_what_is_wanted(tmp_path):
    one, standard = {"w": jnp.ones((2, 2))}, ocp.args.StandardSave
    kinds = ocp.args.PyTreeSave(one), ocp.args.Composite(params=standard(one))
    for number, args in enumerate(kinds):
        with ocp.CheckpointManager(tmp_path / str(number)) as manager:
            manager.save(7, args=args)
            manager.wait_until_finished()
            hint = r"checkpoint of step 7 cannot be .*manager\.save\(.*StandardSave"
            with pytest.raises(ValueError, match=hint) as raised:
                one_by_one(manager).at(0)
            assert isinstance(raised.value.__cause__, ValueError)  # orbax's own


def test_one_by_one_in_any_form():
    for form in (TREE, [at(k) for k in range(3)]):
        series = one_by_one(form)
        assert [float(series.at(k)["b"]) for k in series.numbers] == [0, 1, 2]
        assert_same(series.at(1), at(1))
    for nothing in ([], {"w": jnp.zeros((0, 2))}):
        with pytest.raises(ValueError, match="no checkpoints; wanted one or more"):
            one_by_one(nothing)
    with pytest.raises(ValueError, match="at checkpoint 1 and has shape"):
        one_by_one([at(0), at(1) | {"w": jnp.ones(2)}])


def test_learning_rates_may_be_traced():
    def total(rates):
        return stack_checkpoints(TREE, rates)[1].sum()

    np.testing.assert_allclose(jax.jit(total)(RATES), 0.6, rtol=1e-6)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"checkpoint 1 has the structure .*same tree"):
        stack_checkpoints([at(0), at(1) | {"more": 1.0}], RATES[:2])
    other = at(1) | {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"\('w',\) is float32\[2,3\] at checkpoint 1"):
        stack_checkpoints([at(0), other], RATES[:2])
    with pytest.raises(ValueError, match=r"leading axes.*or a list of trees"):
        stack_checkpoints(TREE | {"b": jnp.ones(2)}, RATES)
    with pytest.raises(ValueError, match="leading axes"):
        stack_checkpoints({"b": jnp.float32(1)}, RATES)
    with pytest.raises(ValueError, match="no checkpoints; wanted one or more"):
        stack_checkpoints([], [])
    with pytest.raises(ValueError, match=r"float32\[\] for 3 checkpoints; wanted one"):
        stack_checkpoints(TREE, 0.1)


def test_what_is_no_array_is_named():
    params = {"w": jnp.ones(2), "act": jax.nn.relu}
    loss = lambda p, x: p["act"](x @ p["w"])  # noqa: E731
    xs = jnp.ones((3, 2))
    with pytest.raises(TypeError, match=r"'act',?\) is a .*eqx.partition"):
        tracin(loss)([params], [0.1], xs, xs)
    with pytest.raises(TypeError, match=r"'act',?\) is a .*eqx.partition"):
        forms(loss)(params, xs[0])
    with pytest.raises(ValueError, match=r"of one checkpoint \[params\]"):
        tracin(loss)({"w": jnp.ones(2), "b": jnp.ones(())}, [0.1], xs, xs)
    with pytest.raises(TypeError, match=r"where is 'w'; wanted a list.*\[\('w',\)\]"):
        tracin(loss, where="w")([{"w": jnp.ones(2)}], [0.1], xs, xs)
