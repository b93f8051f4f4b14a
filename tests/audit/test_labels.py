"""Suspicious labels are ranked by `influence`, plans made by `shard`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from jaxmethods import audit, influence, shard

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
    with pytest.raises(ValueError, match="batch"):
        audit.memory(*data, devices=8, batch=12)
