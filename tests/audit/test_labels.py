"""Suspicious labels are ranked by `influence`, plans made by `shard`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from jaxmethods import audit, influence, shard
from jaxmethods.audit.trained import (
    is_trained,
    num_trained,
    split_trained,
    untrained_names,
)

from . import nets

PARAMS = nets.make_params()
INPUTS, LABELS = nets.make_data(nets.apply, PARAMS)


@pytest.mark.parametrize("several", [False, True])
def test_scores_are_self_influence(several):
    kept = [nets.make_params(5), PARAMS] if several else [PARAMS]
    got = audit.labels(
        nets.apply,
        PARAMS,
        INPUTS,
        LABELS,
        checkpoints=kept if several else None,
        num_suspects=4,
        chunk=5,
    )
    own = influence.self_influence(nets.loss)
    scores = np.asarray(own(kept, np.ones(len(kept)), (INPUTS, LABELS)))
    np.testing.assert_allclose(got.scores, scores, rtol=1e-5)
    assert got.ranking == np.argsort(-np.array(got.scores), kind="stable").tolist()
    assert got.num_checkpoints == len(kept) and len(got.suspects) == 4
    for suspect, number in zip(got.suspects, got.ranking[:4], strict=True):
        example = INPUTS[number], LABELS[number]
        read = int(nets.apply(PARAMS, example[0]).argmax())
        assert suspect[:4] == (number, example[1], read, got.scores[number])
        assert np.isclose(suspect.loss, nets.loss(PARAMS, example), rtol=1e-5)


def test_wrong_labels_come_first():
    got = audit.labels(nets.apply, PARAMS, INPUTS, LABELS, num_suspects=2)
    assert {suspect.index for suspect in got.suspects} == set(nets.WRONG)


def test_running_statistics_of_flax_do_not_count():
    def apply(variables, x):
        return nets.apply(variables["params"], x - variables["batch_stats"]["mean"])

    variables = {"params": PARAMS, "batch_stats": {"mean": np.zeros(5, "f")}}
    got = audit.labels(apply, variables, INPUTS, LABELS)
    plain = audit.labels(nets.apply, PARAMS, INPUTS, LABELS)
    np.testing.assert_allclose(got.scores, plain.scores, rtol=1e-5)


def test_a_part_of_an_nnx_module_may_be_called_params():
    class Named(nnx.Module):
        def __init__(self):
            self.params = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(3, 2, rngs=nnx.Rngs(1))
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(2))

    _, state = nnx.split(Named())
    assert untrained_names(state) == ["norm/mean", "norm/var"]


class Norm(nnx.Module):
    """With running statistics that are no fixed point, and keys of dropout."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.norm.mean[...] = jnp.linspace(-0.3, 0.4, 8)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


@pytest.fixture(scope="module")
def norm():
    """apply and the scores and sizes of `nnx.Param` alone."""
    graph, params, rest = nnx.split(Norm(), nnx.Param, ...)

    def loss(params, example):
        return nets.loss(params, example, lambda p, x: nnx.merge(graph, p, rest)(x))

    gradients = jax.vmap(jax.grad(loss), (None, 0))(params, (INPUTS, LABELS))
    squares = [(g**2).reshape(len(g), -1).sum(1) for g in jax.tree.leaves(gradients)]
    whole, _ = nnx.split(Norm())

    def apply(params, x):
        return nnx.merge(whole, params)(x)

    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    return apply, np.asarray(sum(squares)), sum(sizes)


@pytest.mark.parametrize("kind", ["state", "pure", "saved"])
def test_only_parameters_of_nnx_count(norm, kind):
    apply, scores, size = norm
    _, state = nnx.split(Norm())  # with a key that was not used
    given = state if kind == "state" else nnx.to_pure_dict(state)
    if kind == "saved":  # as a npz has the names of a state

        def named(tree):
            if isinstance(tree, dict):
                return {name: named(part) for name, part in tree.items()}
            return {"value": tree}

        structure = jax.tree.structure(given)
        given = named(given)

        def apply(params, x):
            return norm[0](structure.unflatten(jax.tree.leaves(params)), x)

    got = audit.labels(apply, given, INPUTS, LABELS)
    np.testing.assert_allclose(got.scores, scores, rtol=1e-5)
    assert num_trained(given) == size == 5 * 8 + 8 + 2 * 8 + 8 * 3 + 3
    names = ["drop/rngs/count", "drop/rngs/key", "norm/mean", "norm/var"]
    assert untrained_names(given) == names


def test_memory_has_no_adam_for_running_statistics(norm):
    apply, _, numbers = norm
    got = audit.memory(apply, nnx.split(Norm())[1], INPUTS, devices=2, batch=4).layouts[
        0
    ]
    assert got.parameter_bytes == 4 * numbers and "norm/mean" not in got.table
    graph, alone, rest = nnx.split(Norm(), nnx.Param, ...)
    without = audit.memory(
        lambda p, x: nnx.merge(graph, p, rest)(x), alone, INPUTS, devices=2, batch=4
    ).layouts[0]
    # A mean and a variance, a key of two words and a count.
    assert got.memory_bytes == without.memory_bytes + 4 * (8 + 8 + 2 + 1)
    assert got.wire_bytes == without.wire_bytes


def test_what_is_trained_of_other_trees():
    ones = jnp.ones(3)
    # A mean and a variance that no scale goes with may well be trained.
    assert is_trained({"mean": ones, "var": ones}) == [True, True]
    assert is_trained({"mean": ones, "scale": ones, "w": ones}) == [True] * 3
    assert is_trained({"bias": ones, "mean": jnp.ones(2), "var": ones}) == [True] * 3
    assert is_trained([ones, jnp.arange(2), jax.random.key(0)]) == [True, False, False]
    # Where the kind of a variable is known its name does not matter.
    state = nnx.State({"offset": nnx.BatchStat(ones), "w": nnx.Param(ones)})
    assert is_trained(state) == [False, True]
    named = {name: nnx.Param(ones) for name in ("mean", "scale", "var")}
    assert is_trained(nnx.State(named)) == [True] * 3
    assert is_trained({"params": {"w": ones}, "other": ones}) == [False, True]
    assert is_trained({"b": jnp.arange(2), "w": jnp.arange(3)}) == [False, False]
    tree = {"count": jnp.arange(2), "w": ones}
    part, whole = split_trained(tree)
    assert part["count"] is None and len(jax.tree.leaves(part)) == 1
    assert jax.tree.all(jax.tree.map(jnp.array_equal, whole(part), tree))


@pytest.mark.parametrize(
    "checkpoints, hint",
    [
        ([], "checkpoints is empty; wanted one or more"),
        ([PARAMS, {"w0": PARAMS["w0"]}], r"checkpoint 1 has w0 \(5, 7\) where params"),
        (
            [nets.make_params(classes=4)],
            r"checkpoint 0 has w1 \(7, 4\) where .*\(7, 3\)",
        ),
    ],
)
def test_checkpoints_of_another_model_are_told(checkpoints, hint):
    with pytest.raises(ValueError, match=hint):
        audit.labels(nets.apply, PARAMS, INPUTS, LABELS, checkpoints=checkpoints)


def test_gradients_that_are_not_finite_are_told():
    def apply(params, x):
        return jnp.sqrt(x) * params

    inputs = np.array([[0.5, 0.2], [0.0, 0.0]], "f")
    params = np.array([1e30, 1e30], "f")
    with pytest.raises(
        ValueError, match=r"examples \[\d.*\] are not finite; .*overflow"
    ):
        audit.labels(lambda p, x: apply(p, x) ** 2, params, inputs, [0, 1])


def test_the_memory_table_is_that_of_the_plans():
    random = np.random.default_rng(0)
    wide = {
        "w0": random.standard_normal((64, 256)).astype("f"),
        "b0": np.zeros(256, "f"),
        "w1": random.standard_normal((256, 10)).astype("f"),
    }
    got = audit.memory(nets.apply, wide, np.ones((1, 64), "f"), batch=16)

    def loss(params, batch):
        return jax.vmap(lambda *e: nets.loss(params, e))(*batch).mean()

    batch = np.ones((16, 64), "f"), np.zeros(16, np.int32)
    names = ["data parallel", "4 data x 2 model", "2 data x 4 model"]
    names += ["1 data x 8 model", "fully sharded"]
    assert [layout.name for layout in got.layouts] == names
    assert got[:2] == (8, 16)
    for layout, groups in zip(got.layouts, (8, 4, 2, 1, 8), strict=True):
        mesh = Mesh(np.array(jax.devices()).reshape(groups, -1), ("data", "model"))
        choices = {(): "full"} if layout.name == "fully sharded" else None
        plan = shard.plan(
            loss, wide, batch, mesh=mesh, optimizer=optax.adam(1e-3), choices=choices
        )
        assert layout.parameter_bytes == plan.parameter_bytes
        assert layout.memory_bytes == plan.memory_bytes
        assert layout.wire_bytes == plan.wire_bytes
        assert layout.table == str(plan)
        assert layout.num_split == sum(row.choice != "replicate" for row in plan.rows)
    bytes_held = [layout.parameter_bytes for layout in got.layouts]
    assert bytes_held[0] == 4 * (64 * 256 + 256 + 2560) > bytes_held[1]


def test_one_device_has_one_layout_and_a_batch_must_divide():
    data = nets.apply, PARAMS, INPUTS
    assert [p.name for p in audit.memory(*data, devices=1).layouts] == ["data parallel"]
    # No axis of 5, 7 or 3 is a multiple of 2, so nothing can be fully sharded.
    names = ["data parallel", "1 data x 2 model"]
    assert [p.name for p in audit.memory(*data, devices=2).layouts] == names
    with pytest.raises(ValueError, match=r"12 for 8 devices; .*batch=16 \(--batch 16"):
        audit.memory(*data, devices=8, batch=12)
