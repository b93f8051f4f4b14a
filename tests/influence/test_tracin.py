"""Laws, goldens, composition and errors of tracin, self_influence and aggregate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmethods.influence import (
    _chunks,
    aggregate,
    forms,
    self_influence,
    tracin,
)
from tests.influence.definition import assert_close, build

ALL = {"tracin": tracin, "aggregate": aggregate, "self_influence": self_influence}


def call(name, loss, checkpoints, rates, train, test, **options):
    sets = (train,) if name == "self_influence" else (train, test)
    return ALL[name](loss, **options)(checkpoints, rates, *sets)


def softmax_loss(params, example):
    x, y = example
    logits = x @ params["w"] + params["b"]
    return jax.nn.logsumexp(logits) - logits[y]


@functools.cache
def softmax_scores():
    return jax.jit(tracin(softmax_loss))


values = st.integers(-50, 50).map(lambda i: i / 16)


@settings(max_examples=25, deadline=None)
@given(st.lists(values, min_size=20, max_size=20), st.integers(0, 2), values)
def test_softmax_regression_in_closed_form(x, y, bias):
    x = jnp.asarray(x, jnp.float32).reshape(4, 5)
    y = (jnp.arange(4) + y) % 3
    params = {
        "w": jnp.sin(jnp.arange(30.0)).reshape(2, 5, 3),
        "b": jnp.full((2, 3), bias).at[:, 0].set(0.0),
    }
    rates = jnp.asarray([0.5, 2.0])
    want = 0
    for rate, w, b in zip(rates, params["w"], params["b"], strict=True):
        residual = jax.nn.softmax(x @ w + b.reshape(1, 3)) - jax.nn.one_hot(y, 3)
        want += rate * (x @ x.T + 1) * (residual @ residual.T)
    got = softmax_scores()(params, rates, (x, y), (x, y))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * jnp.abs(want).max())
    np.testing.assert_allclose(got, got.T, rtol=1e-5, atol=1e-6 * jnp.abs(got).max())
    assert np.linalg.eigvalsh(got)[0] > -1e-4 * np.abs(got).max()


@pytest.mark.parametrize("tag", ["mlp", "cnn", "txt"])
def test_goldens(tag, shared, x64):
    with np.load(shared / "goldens" / "16-tracin.npz") as file:
        data = {k.removeprefix(f"{tag}__"): file[k] for k in file if k.startswith(tag)}
    params = {
        k.removeprefix("params__"): jnp.asarray(v)
        for k, v in data.items()
        if k.startswith("params__")
    }

    def layer(p, name, x):
        bias = p[f"{name}.bias"]
        if x.ndim == 1:
            return p[f"{name}.weight"] @ x + bias
        how = {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}
        pad = [(1, 1)] * 2 if name == "0" else [(0, 0)] * 2
        kernel = p[f"{name}.weight"]
        x = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), pad, **how)[0]
        return x + bias.reshape(-1, 1, 1)

    def network(p, x):
        if tag == "mlp":
            x = jnp.tanh(layer(p, "2", jax.nn.relu(layer(p, "0", x))))
            return layer(p, "4", x)
        if tag == "txt":
            return layer(
                p, "fc2", jnp.tanh(layer(p, "fc1", p["emb.weight"][x].mean(0)))
            )
        x = jax.nn.relu(layer(p, "0", x))
        window = (1, 2, 2)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        return layer(p, "6", jax.nn.relu(layer(p, "3", x)).reshape(-1))

    def loss(p, example):
        logits = network(p, example[0])
        return jax.nn.logsumexp(logits) - logits[example[1]]

    pick = {k: jnp.asarray(data[k]) for k in ("x_train", "y_train", "x_test", "y_test")}
    train, test = (pick["x_train"], pick["y_train"]), (pick["x_test"], pick["y_test"])
    rates = jnp.asarray(data["lr"])
    got = tracin(loss)(params, rates, train, test)
    assert_close(got, data["influence"], 1e-9)
    assert_close(
        self_influence(loss)(params, rates, train), data["self_influence_train"], 1e-9
    )
    if tag != "txt":
        last = [max(k for k in params if k.endswith("weight"))]
        got = tracin(loss, where=[tuple(last)])(params, rates, train, test)
        assert_close(got, data["fast_influence"], 1e-9)


@pytest.mark.parametrize("name", ALL)
def test_disjoint_parameters_add_up(name):
    args = build("convolutions_and_pools")
    whole = call(name, *args)
    parts = [call(name, *args, where=[(k,)]) for k in ("k", "l")]
    rest = call(name, *args, where=lambda path: path == ("w",))
    assert_close(sum(parts) + rest, whole)
    assert min(float(jnp.abs(p).max()) for p in (*parts, rest)) > 0


@pytest.mark.parametrize("name", ALL)
def test_linear_in_the_rates_and_their_derivative(name):
    loss, checkpoints, rates, train, test = build("dense")

    @jax.jit
    def of_rates(rates):
        return call(name, loss, checkpoints, rates, train, test)

    one, other = of_rates(jnp.asarray([1.0, 0.0])), of_rates(jnp.asarray([0.0, 1.0]))
    assert_close(of_rates(rates), rates[0] * one + rates[1] * other)
    slope = jax.grad(lambda r: of_rates(r).sum())(rates)
    np.testing.assert_allclose(slope, [one.sum(), other.sum()], rtol=1e-4)


@pytest.mark.parametrize("loss_name", ["dense", "convolutions_and_pools"])
@pytest.mark.parametrize("name", ALL)
def test_chunks_change_nothing(name, loss_name, monkeypatch):
    args = build(loss_name, n=13, m=7)
    want = call(name, *args)
    # Room for 5 of the smaller examples; then for one example at a time.
    for budget in (1500, 1):
        monkeypatch.setattr(_chunks, "BUDGET", budget)
        assert_close(call(name, *args), want, 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_list_of_checkpoints_jit_and_vmap_over_models(name):
    loss, checkpoints, rates, train, test = build("dense")
    want = call(name, loss, checkpoints, rates, train, test)
    listed = [jax.tree.map(lambda x, k=k: x[k], checkpoints) for k in range(2)]
    assert_close(call(name, loss, listed, rates, train, test), want, 1e-6)
    several = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), checkpoints)
    mapped = jax.jit(jax.vmap(lambda c: call(name, loss, c, rates, train, test)))
    got = mapped(several)
    assert_close(got[0], want, 1e-5)
    half = jax.tree.map(lambda x: 0.5 * x, checkpoints)
    assert_close(got[1], call(name, loss, half, rates, train, test), 1e-5)


@pytest.mark.parametrize("loss_name", ["dense", "convolutions_and_pools"])
@pytest.mark.parametrize("name", ALL)
def test_training_examples_over_devices(name, loss_name, monkeypatch):
    loss, checkpoints, rates, train, test = build(loss_name, n=24)
    want = call(name, loss, checkpoints, rates, train, test)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = P(None, "data") if name == "tracin" else P("data")

    def scored(train):
        return call(name, loss, checkpoints, rates, train, test)

    monkeypatch.setattr(_chunks, "BUDGET", 1000)  # Several chunks on each device.
    mapped = jax.shard_map(scored, mesh=mesh, in_specs=P("data"), out_specs=spec)
    assert_close(jax.jit(mapped)(train), want, 1e-5)
    placed = jax.device_put(train, NamedSharding(mesh, P("data")))
    assert_close(jax.jit(scored)(placed), want, 1e-5)


def test_training_and_test_examples_over_two_mesh_axes():
    loss, checkpoints, rates, train, test = build("dense", n=8, m=4)
    want = tracin(loss)(checkpoints, rates, train, test)
    kinds = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "test"), axis_types=kinds)
    mapped = jax.shard_map(
        functools.partial(tracin(loss), checkpoints, rates),
        mesh=mesh,
        in_specs=(P("data"), P("test")),
        out_specs=P("test", "data"),
    )
    assert_close(jax.jit(mapped)(train, test), want, 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_loss_is_traced_once(name):
    loss, checkpoints, rates, train, test = build("dense")
    calls = []

    def counted(params, example):
        calls.append(1)
        return loss(params, example)

    call(name, counted, checkpoints, rates, train, test)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_summed_in_float32(name):
    loss, checkpoints, rates, train, test = build("dense")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (checkpoints, train, test))
    got = call(name, loss, half[0], rates, *half[1:])
    assert got.dtype == jnp.float32
    # bfloat16 has 8 bits: the gradients are off by some of its steps.
    assert_close(got, call(name, loss, checkpoints, rates, train, test), 0.1)


@pytest.mark.parametrize("name", ALL)
def test_integer_and_unused_parameters_count_nothing(name):
    loss, checkpoints, rates, train, test = build("dense")
    more = checkpoints | {"steps": jnp.arange(2), "spare": jnp.ones((2, 3))}

    def scaled(p, x):
        return loss(p, x) * p["steps"]

    got = call(name, scaled, more, rates, train, test)
    second = jax.tree.map(lambda x: x[1:], checkpoints)
    assert_close(got, call(name, loss, second, rates[1:], train, test), 1e-5)
    spare = call(name, loss, more, rates, train, test, where=[("spare",)])
    assert spare.shape == got.shape
    assert not spare.any()


def test_no_test_example_no_row():
    loss, checkpoints, rates, train, test = build("dense")
    assert tracin(loss)(checkpoints, rates, train, test[:0]).shape == (0, 5)
    assert not aggregate(loss)(checkpoints, rates, train, test[:0]).any()


def test_examples_may_hold_keys():
    def loss(params, example):
        noise = jax.random.normal(example["key"], (3,))
        return jnp.sum((params["w"] * (example["x"] + noise)) ** 2)

    examples = {
        "x": jnp.ones((4, 3)),
        "key": jax.random.split(jax.random.key(0), 4),
    }
    # The same noise at every checkpoint is meant; the reuse check takes it for a slip.
    with jax.debug_key_reuse(False):
        got = self_influence(loss)([{"w": jnp.ones(3)}], [1.0], examples)
    assert got.shape == (4,)
    assert len(set(got.tolist())) == 4


@pytest.mark.parametrize("name", ALL)
def test_memory_does_not_hold_a_gradient_per_example(name):
    def loss(p, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"]))

    params = {"w": jnp.zeros((1, 64, 128)), "v": jnp.zeros((1, 128, 64))}
    x = jax.ShapeDtypeStruct((2048, 64), jnp.float32)
    fn = jax.jit(lambda x: call(name, loss, params, [1.0], x, x[:4]))
    used = fn.lower(x).compile().memory_analysis().temp_size_in_bytes
    assert used < 0.2 * 2048 * 4 * 2 * 64 * 128


BAD_RATES = {
    "too few": ([0.1], "1 .* for 2 checkpoints|\\[1\\] for 2 checkpoints"),
    "negative": ([0.1, -1.0], "with -1.0 in it; wanted finite"),
    "not finite": ([np.inf, 1.0], "inf.*finite"),
}


@pytest.mark.parametrize("case", BAD_RATES)
@pytest.mark.parametrize("name", ALL)
def test_bad_learning_rates(name, case):
    loss, checkpoints, _, train, test = build("dense")
    rates, hint = BAD_RATES[case]
    with pytest.raises(ValueError, match=hint):
        call(name, loss, checkpoints, rates, train, test)


@pytest.mark.parametrize("name", ALL)
def test_bad_losses_sets_and_choices(name):
    loss, checkpoints, rates, train, test = build("dense")
    run = functools.partial(call, name)
    with pytest.raises(ValueError, match=r"float32\[3\].*wanted one floating scalar"):
        run(lambda p, x: x @ p["w"][:, :3], checkpoints, rates, train, test)
    with pytest.raises(ValueError, match="wanted one floating scalar"):
        run(lambda p, x: (loss(p, x),), checkpoints, rates, train, test)
    with pytest.raises(ValueError, match=r"int32.*wanted one floating scalar"):
        run(lambda p, x: jnp.int32(loss(p, x)), checkpoints, rates, train, test)
    with pytest.raises(ValueError, match=r"no examples.*wanted one or more"):
        run(loss, checkpoints, rates, train[:0], test)
    with pytest.raises(ValueError, match="wanted one leading axis of examples"):
        run(loss, checkpoints, rates, (train, test), test)
    with pytest.raises(ValueError, match=r"nowhere.*known paths"):
        run(loss, checkpoints, rates, train, test, where=[("nowhere",)])
    with pytest.raises(ValueError, match="where chooses no parameter"):
        run(loss, checkpoints, rates, train, test, where=lambda path: False)
    more = checkpoints | {"steps": jnp.arange(2)}
    with pytest.raises(ValueError, match=r"int32.*wanted a floating one"):
        run(loss, more, rates, train, test, where=[("steps",)])
    more = checkpoints | {"phase": jnp.ones(2, jnp.complex64)}
    with pytest.raises(TypeError, match=r"phase.*complex64; wanted real"):
        run(loss, more, rates, train, test)


def test_an_example_whose_gradient_is_not_finite_is_named():
    loss, checkpoints, rates, train, test = build("dense")
    bad = train.at[3, 1].set(jnp.nan)
    with pytest.raises(ValueError, match=r"not finite: the scores of examples \[3\]"):
        self_influence(loss)(checkpoints, rates, bad)
    for name in ("tracin", "aggregate"):
        with pytest.raises(ValueError, match=r"not finite: the scores of train \[3\]"):
            call(name, loss, checkpoints, rates, bad, test)
        with pytest.raises(ValueError, match=r"not finite: the scores of test \[1\]"):
            call(name, loss, checkpoints, rates, train, test.at[1].set(jnp.inf))
        with pytest.raises(ValueError, match=r"no score is finite; .* the checkpoints"):
            broken = jax.tree.map(lambda x: x * jnp.nan, checkpoints)
            call(name, loss, broken, rates, train, test)
        # Inside jit its scores show it, and no other's.
        got = jax.jit(
            lambda train, name=name: call(name, loss, checkpoints, rates, train, test)
        )(bad)
        assert np.isfinite(got).all(axis=tuple(range(got.ndim - 1))).tolist() == [
            i != 3 for i in range(5)
        ]


def test_a_score_that_overflows_is_named():
    def loss(p, x):
        return jnp.sum(p["w"] * x)

    x = jnp.asarray([[1.0], [1e30]])
    with pytest.raises(ValueError, match="the score of test 1 and train 1; wanted"):
        tracin(loss)({"w": jnp.ones((1, 1))}, [1.0], x, x)


@pytest.mark.parametrize("name", ALL)
def test_examples_that_interact_are_refused(name):
    loss, checkpoints, rates, train, test = build("dense")

    def normalised(p, x):
        return loss(p, x - jax.lax.pmean(x, "batch"))

    with pytest.raises(ValueError, match=r"looks at others .*batch.*running averages"):
        call(name, normalised, checkpoints, rates, train, test)

    def mistaken(p, x):
        return undefined_name(p, x)  # noqa: F821

    with pytest.raises(NameError, match="undefined_name"):
        call(name, mistaken, checkpoints, rates, train, test)


def test_bad_weights_and_no_test_set():
    loss, checkpoints, rates, train, test = build("dense")
    for score in (tracin(loss), aggregate(loss)):
        with pytest.raises(ValueError, match=r"test has leaves of shapes \{\}; wanted"):
            score(checkpoints, rates, train, None)
    with pytest.raises(ValueError, match=r"float32\[2\] for 3 test.*one weight"):
        aggregate(loss)(checkpoints, rates, train, test, weights=jnp.ones(2))


def test_forms_refuse_what_the_scores_refuse():
    loss, checkpoints, _, train, _ = build("dense")
    params = jax.tree.map(lambda x: x[0], checkpoints)
    with pytest.raises(ValueError, match="known paths"):
        forms(loss, where=[("nowhere",)])(params, train[0])
    with pytest.raises(ValueError, match="wanted one floating scalar"):
        forms(lambda p, x: x)(params, train[0])
