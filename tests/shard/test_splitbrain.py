"""Plans: what is split, what it costs, and that training does not change."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.shard import splitbrain, wire

N = 8


def grid(members, names=("data", "model")):
    return Mesh(np.array(jax.devices()).reshape(N // members, members), names)


def net(p, x):
    for i in range(2):
        x = jax.lax.conv_general_dilated(
            x, p[f"conv{i}"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + p[f"cb{i}"][None, None, None])
        window = (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    x = x.reshape(len(x), -1)
    for i in range(2):
        x = jax.nn.relu(x @ p[f"fc{i}"] + p[f"fb{i}"][None])
    return x @ p["fc2"] + p["fb2"][None]


def loss(p, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(net(p, x), y).mean()


def wide(rows=16, width=256):
    """Parameters whose dense layers are worth splitting, and a batch."""
    rng = np.random.default_rng(3)
    shapes = {
        "conv0": (3, 3, 3, 4),
        "conv1": (3, 3, 4, 8),
        "fc0": (32, width),
        "fc1": (width, width),
        "fc2": (width, 10),
    }
    biases = {"cb0": 4, "cb1": 8, "fb0": width, "fb1": width, "fb2": 10}
    p = {
        k: rng.standard_normal(s) / np.sqrt(np.prod(s[:-1])) for k, s in shapes.items()
    }
    p |= {k: 0.1 * rng.standard_normal(s) for k, s in biases.items()}
    p = {k: jnp.asarray(v, jnp.float32) for k, v in p.items()}
    x = jnp.asarray(rng.standard_normal((rows, 8, 8, 3)), jnp.float32)
    return p, (x, jnp.asarray(rng.integers(0, 10, rows)))


# The golden's layers are so narrow that four members split none.
@pytest.mark.filterwarnings("ignore:no layer is worth splitting over 4")
@pytest.mark.parametrize("members", [2, 4])
def test_golden_training(shared, members, x64):
    z = np.load(shared / "goldens" / "02-splitbrain.npz")
    p = {k[3:]: jnp.asarray(z[k]) for k in z if k.startswith("p0_")}
    batch = (jnp.asarray(z["x"]), jnp.asarray(z["y"]))
    plan = splitbrain(loss, p, batch, mesh=grid(members))
    step = plan.apply(jax.value_and_grad(loss))
    p, momentum, losses = plan.place(p), jax.tree.map(jnp.zeros_like, p), []
    for number in range(3):
        value, grads = step(p, batch)
        for k in p if number == 0 else ():
            np.testing.assert_allclose(grads[k], z[f"g0_{k}"], rtol=1e-10, atol=1e-12)
        momentum = jax.tree.map(lambda v, g: 0.9 * v + g, momentum, grads)
        p = jax.tree.map(lambda p, v: p - 0.05 * v, p, momentum)
        losses.append(float(value))
    np.testing.assert_allclose(losses, z["losses"], rtol=1e-11)
    for k in p:
        np.testing.assert_allclose(p[k], z[f"p3_{k}"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("members", [2, 8])
def test_split_layers_compute_what_one_device_computes(members):
    p, batch = wide()
    plan = splitbrain(loss, p, batch, mesh=grid(members))
    value, grads = plan.apply(jax.value_and_grad(loss))(plan.place(p), batch)
    want, wanted = jax.value_and_grad(loss)(p, batch)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for k in p:
        np.testing.assert_allclose(grads[k], wanted[k], rtol=1e-4, atol=1e-6)
        assert grads[k].sharding.is_equivalent_to(plan.place(p)[k].sharding, p[k].ndim)


def test_choice():
    p, batch = wide()
    plan = splitbrain(loss, p, batch, mesh=grid(4))
    choices = {
        row.path[0]: row.choice for row in plan.rows if row.choice != "replicate"
    }
    assert choices == {"fc0": "column", "fb0": "column", "fc1": "row"}
    assert plan.specs["fc0"] == P(None, "model") and plan.specs["fc1"] == P("model")
    assert plan.specs["fb0"] == P("model")
    placed = plan.place(p)
    held = sum(x.addressable_shards[0].data.nbytes for x in placed.values())
    assert plan.parameter_bytes == held
    assert held == sum(x.nbytes for x in p.values()) - sum(
        p[k].nbytes * 3 // 4 for k in choices
    )
    for k in p:
        np.testing.assert_array_equal(placed[k], p[k])


def test_more_rows_make_splitting_dearer():
    p, batch = wide()
    many = jax.tree.map(lambda x: jnp.concatenate([x] * 256), batch)
    with pytest.warns(UserWarning, match=r"no layer is worth.*send [\d,]+ bytes more"):
        plan = splitbrain(loss, p, many, mesh=grid(2))
    assert {row.choice for row in plan.rows} == {"replicate"}


def test_nothing_to_split_warns():
    p, batch = wide(width=15)
    with pytest.warns(UserWarning, match="no dense layer can be split over 2 devices"):
        splitbrain(loss, p, batch, mesh=grid(2))


def test_a_wide_last_layer_is_split_and_a_narrow_one_is_not():
    def last(w, x):
        return (x @ w).mean()

    x = jnp.ones((8, 64))
    plan = splitbrain(last, jnp.ones((64, 1024)), x, mesh=grid(2))
    assert plan.specs == P(None, "model")
    with pytest.warns(UserWarning, match="that is no classifier"):
        plan = splitbrain(last, jnp.ones((64, 100)), x, mesh=grid(2))
    assert plan.specs == P()


@pytest.mark.optimized
@pytest.mark.parametrize("members", [1, 2, 4])
def test_predicted_bytes_are_the_compiled_ones(members):
    p, batch = wide()
    plan = splitbrain(loss, p, batch, mesh=grid(members))
    step = plan.apply(jax.value_and_grad(loss))
    sent = wire(step)(plan.place(p), batch)
    # The rest is the loss itself: a scalar.
    np.testing.assert_allclose(plan.wire_bytes, sent.total, atol=8)


@pytest.mark.optimized
def test_collectives_stay_in_their_groups():
    p, batch = wide()
    plan = splitbrain(loss, p, batch, mesh=grid(4))
    step = plan.apply(jax.value_and_grad(loss))
    text = step.lower(plan.place(p), batch).compile().as_text()
    gathers = re.findall(r"all-gather\(.*?replica_groups=(\S+), ", text)
    # Groups of the mesh's rows only: no gather, of max-pooling or any other, spans all.
    assert gathers and set(gathers) <= {"[2,4]<=[8]", "{{0,1,2,3},{4,5,6,7}}"}


def test_a_whole_training_step_may_be_applied():
    p, batch = wide()
    plan = splitbrain(loss, p, batch, mesh=grid(2))
    optimizer = optax.adam(1e-2)

    def step(p, batch, state, scale):
        grads = jax.grad(loss)(p, batch)
        updates, state = optimizer.update(grads, state, p)
        return optax.apply_updates(p, jax.tree.map(lambda u: scale * u, updates)), state

    placed = plan.place(p)
    got, state = plan.apply(step)(placed, batch, optimizer.init(placed), 0.5)
    want, _ = jax.jit(step)(p, batch, optimizer.init(p), 0.5)
    for k in p:
        # The first step of Adam is the sign of the gradient, whatever its size.
        off = np.abs(got[k] - want[k]) > 1e-5
        assert off.mean() < 0.01
    assert state[0].mu["fc1"].sharding.spec == P("model")


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_losses_inside_calls(wrap):
    p, batch = wide()
    plan = splitbrain(wrap(loss), p, batch, mesh=grid(2))
    assert plan.specs["fc1"] == P("model")
    grads = plan.apply(jax.grad(wrap(loss)))(plan.place(p), batch)
    wanted = jax.grad(loss)(p, batch)
    np.testing.assert_allclose(grads["fc0"], wanted["fc0"], rtol=1e-4, atol=1e-6)


def test_table():
    p, batch = wide()
    plan = splitbrain(loss, p, batch, mesh=grid(2))
    lines = str(plan).splitlines()
    head = "layer shape choice flops parameter gradient optimizer activation wire"
    assert lines[0].split() == head.split()
    flops = 2 * 16 * 32 * 256 // 8
    fc0 = next(line for line in lines if line.startswith("fc0"))
    assert fc0.split()[:4] == ["fc0", "32x256", "column", f"{flops:,}"]
    assert f"{plan.parameter_bytes:,}" in lines[-2]
    assert lines[-1].startswith("mesh 4 data x 2 model; a device holds")


def test_shapes_are_enough_to_plan():
    p, batch = wide()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (p, batch))
    plan = splitbrain(loss, *shapes, mesh=grid(2))
    assert plan.rows == splitbrain(loss, p, batch, mesh=grid(2)).rows


def test_errors():
    p, (x, y) = wide()
    with pytest.raises(ValueError, match=r"'tensor'\); wanted \('data', 'model'\)"):
        splitbrain(loss, p, (x, y), mesh=grid(2, ("data", "tensor")))
    explicit = Mesh(
        grid(2).devices, ("data", "model"), axis_types=(AxisType.Explicit,) * 2
    )
    with pytest.raises(ValueError, match="wanted Auto: Mesh"):
        splitbrain(loss, p, (x, y), mesh=explicit)
    with pytest.raises(
        ValueError, match="13 examples for 8 devices; wanted a multiple"
    ):
        splitbrain(loss, p, (x[:13], y[:13]), mesh=grid(2))
    with pytest.raises(ValueError, match="one leading axis of examples"):
        splitbrain(loss, p, (x, y[:8]), mesh=grid(2))
    plan = splitbrain(loss, p, (x, y), mesh=grid(2))
    with pytest.raises(ValueError, match="12 examples for 8 devices"):
        plan.apply(loss)(p, (x[:12], y[:12]))
