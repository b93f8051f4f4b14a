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
from scipy.special import softmax

from jaxmethods.influence import (
    _chunks,
    aggregate,
    forms,
    opponents,
    proponents,
    self_influence,
    tracin,
)
from tests.influence.definition import assert_close, at, build

ALL = {"tracin": tracin, "aggregate": aggregate, "self_influence": self_influence}


def call(name, loss, checkpoints, rates, train, test, **options):
    sets = (train,) if name == "self_influence" else (train, test)
    return ALL[name](loss, **options)(checkpoints, rates, *sets)


@functools.cache
def compiled(name, loss_name="dense"):
    """The scores of a member of LOSSES, for all tests that ask for them alike."""
    return jax.jit(functools.partial(call, name, build(loss_name)[0]))


# All scores of a small loss, and that of the largest one whose parts are cut apart.
LARGE = "convolutions_and_pools"
CASES = [*((name, "dense") for name in ALL), ("tracin", LARGE)]


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
    x = np.asarray(x, np.float32).reshape(4, 5)
    y = (np.arange(4) + y) % 3
    params = {
        "w": np.sin(np.arange(30, dtype=np.float32)).reshape(2, 5, 3),
        "b": np.asarray([[0, bias, bias]] * 2, np.float32),
    }
    rates = np.asarray([0.5, 2.0], np.float32)
    want = 0
    for rate, w, b in zip(rates, params["w"], params["b"], strict=True):
        residual = softmax(x @ w + b, 1) - np.eye(3)[y]
        want += rate * (x @ x.T + 1) * (residual @ residual.T)
    got = softmax_scores()(params, rates, (x, y), (x, y))
    got = np.asarray(got)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    np.testing.assert_allclose(got, got.T, rtol=1e-5, atol=1e-6 * np.abs(got).max())
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
    last = max(k for k in params if k.endswith("weight"))

    @jax.jit
    def scores(*args):
        found = {"influence": tracin(loss)(*args)}
        found["self_influence_train"] = self_influence(loss)(*args[:3])
        if tag != "txt":
            found["fast_influence"] = tracin(loss, where=[(last,)])(*args)
        return found

    for name, score in scores(params, rates, train, test).items():
        assert_close(score, data[name], 1e-9)


@pytest.mark.parametrize("name", ALL)
def test_disjoint_parameters_add_up(name):
    loss, *args = build("dense")

    @jax.jit
    def scores(*args):
        wheres = [("w",)], [("b",)], lambda path: path == ("v",)
        return [call(name, loss, *args, where=where) for where in wheres]

    parts = scores(*args)
    assert_close(np.sum(parts, 0), compiled(name)(*args))
    assert min(np.abs(p).max() for p in parts) > 0


@pytest.mark.parametrize("name", ALL)
def test_linear_in_the_rates_and_their_derivative(name):
    _, checkpoints, rates, train, test = build("dense")

    def of_rates(rates):
        return compiled(name)(checkpoints, rates, train, test)

    one, other = (np.asarray(of_rates(jnp.asarray(r))) for r in ([1.0, 0], [0, 1.0]))
    assert_close(of_rates(rates), 0.5 * one + 0.25 * other)
    slope = jax.jit(jax.grad(lambda r: of_rates(r).sum()))(rates)
    np.testing.assert_allclose(slope, [one.sum(), other.sum()], rtol=1e-4)


@pytest.mark.parametrize("name, loss_name", CASES)
def test_chunks_change_nothing(name, loss_name, monkeypatch):
    args = build(loss_name, n=13, m=7)
    want = compiled(name, loss_name)(*args[1:])
    # Room for 5 of the smaller examples; and for one example at a time.
    for budget in (1500, 1) if loss_name != LARGE else (1,):
        monkeypatch.setattr(_chunks, "BUDGET", budget)
        assert_close(call(name, *args), want, 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_list_of_checkpoints_jit_and_vmap_over_models(name):
    loss, checkpoints, rates, train, test = build("dense")
    fn = compiled(name)
    want = fn(checkpoints, rates, train, test)
    listed = [at(checkpoints, k) for k in range(2)]
    assert_close(call(name, loss, listed, rates, train, test), want, 1e-6)
    half = jax.tree.map(lambda x: np.asarray(0.5 * np.asarray(x)), checkpoints)
    several = jax.tree.map(lambda *x: np.stack(x), checkpoints, half)
    got = jax.jit(jax.vmap(lambda c: call(name, loss, c, rates, train, test)))(several)
    assert_close(got[0], want, 1e-5)
    assert_close(got[1], fn(half, rates, train, test), 1e-5)


@pytest.mark.parametrize("name, loss_name", CASES)
def test_training_examples_over_devices(name, loss_name, monkeypatch):
    loss, checkpoints, rates, train, test = build(loss_name, n=24)
    want = compiled(name, loss_name)(checkpoints, rates, train, test)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = P(None, "data") if name == "tracin" else P("data")

    def scored(train):
        return call(name, loss, checkpoints, rates, train, test)

    monkeypatch.setattr(_chunks, "BUDGET", 1000)  # Several chunks on each device.
    mapped = jax.shard_map(scored, mesh=mesh, in_specs=P("data"), out_specs=spec)
    assert_close(jax.jit(mapped)(train), want, 1e-5)
    if loss_name != LARGE:
        placed = jax.device_put(train, NamedSharding(mesh, P("data")))
        assert_close(jax.jit(scored)(placed), want, 1e-5)


def test_training_and_test_examples_over_two_mesh_axes():
    loss, checkpoints, rates, train, test = build("dense", n=8, m=4)
    want = compiled("tracin")(checkpoints, rates, train, test)
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
    _, checkpoints, rates, train, test = build("dense")
    half = jax.tree.map(
        lambda x: np.asarray(x).astype(jnp.bfloat16), (checkpoints, train, test)
    )
    got = compiled(name)(half[0], rates, *half[1:])
    assert got.dtype == jnp.float32
    # bfloat16 has 8 bits: the gradients are off by some of its steps.
    assert_close(got, compiled(name)(checkpoints, rates, train, test), 0.1)


@pytest.mark.parametrize("name", ALL)
def test_integer_and_unused_parameters_count_nothing(name):
    loss, checkpoints, rates, train, test = build("dense")
    more = checkpoints | {"steps": jnp.arange(2), "spare": jnp.ones((2, 3))}

    def scaled(p, x):
        return loss(p, x) * p["steps"]

    got = jax.jit(functools.partial(call, name, scaled))(more, rates, train, test)
    # The first checkpoint is scaled by 0.
    second = compiled(name)(checkpoints, jnp.asarray([0.0, 0.25]), train, test)
    assert_close(got, second, 1e-5)
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
        # Inside jit its scores show it, and no other's.
        got = compiled(name)(checkpoints, rates, bad, test)
        assert np.isfinite(got).all(axis=tuple(range(got.ndim - 1))).tolist() == [
            i != 3 for i in range(5)
        ]


def product_loss(p, x):
    return jnp.sum(p["w"] * p["v"] * x)


def test_a_checkpoint_that_is_not_finite_is_named():
    train, test = np.ones((4, 3)), np.ones((2, 3))
    w = np.ones((2, 3), np.float32)
    nan, infinite = w.copy(), w.copy()
    nan[1, 2], infinite[1, 2] = np.nan, np.inf
    stacked = {"w": w, "v": nan}
    hint = r"parameter \('v',\) of checkpoint 1, float32\[3\] with nan in it; wanted"
    for make in (tracin, aggregate, functools.partial(proponents, k=2)):
        score = make(product_loss)
        with pytest.raises(ValueError, match=hint):
            score(stacked, [1.0, 1.0], train, test)
    with pytest.raises(ValueError, match=hint):
        self_influence(product_loss)(stacked, [1.0, 1.0], iter([train]))
    with pytest.raises(ValueError, match=r"\('v',\) of checkpoint 1.* with inf in it"):
        tracin(product_loss)(stacked | {"v": infinite}, [1.0, 1.0], train, test)

    def masked(p, x):  # Infinity that spoils nothing is no cause.
        kept = jnp.where(jnp.isfinite(p["v"]), p["v"], 0)
        return jnp.sum(p["w"] * kept * x)

    train[3] = np.nan
    with pytest.raises(ValueError, match=r"not finite: the scores of train \[3\]"):
        tracin(masked)(stacked | {"v": infinite}, [1.0, 1.0], train, test)


def test_the_only_test_example_is_named_once():
    ones, nan = np.ones((4, 3)), np.full((1, 3), np.nan)
    point = [{"w": np.ones(3), "v": np.ones(3)}]
    for make in (tracin, aggregate, functools.partial(opponents, k=2)):
        with pytest.raises(ValueError, match=r"not finite: the scores of test \[0\];"):
            make(product_loss)(point, [1.0], ones, nan)
    with pytest.raises(ValueError, match=r"look for .* in the checkpoints and the ex"):
        self_influence(product_loss)(point, [1.0], np.full((2, 3), np.inf))


def test_training_and_test_examples_of_one_structure():
    x, y = np.ones((4, 3)), np.ones(4)
    point = [{"w": np.ones(3), "v": np.ones(3)}]

    def loss(p, example):
        return product_loss(p, example["x"])

    for make in (tracin, aggregate, functools.partial(proponents, k=1)):
        score = functools.partial(make(loss), point, [1.0])
        hint = r"\{\('x',\): 'float\w+\[3\]'\}.*\('y',\) in the place of nothing;"
        with pytest.raises(ValueError, match=hint):
            score({"x": x, "y": y}, {"x": x})
        with pytest.raises(ValueError, match=r"\(0,\) in the place of \('x',\); w"):
            score(iter([(x, y)]), {"x": x})


def test_a_list_of_batches_is_no_set():
    x, y = np.ones((4, 3)), np.ones(4)
    point = [{"w": np.ones(3), "v": np.ones(3)}]

    def loss(p, example):
        x, y = example
        return product_loss(p, x) * y

    hint = r"batches go in as an iterator: iter\(batches\)"
    batches = [(x, y), (x, y), (x, y)]
    with pytest.raises(ValueError, match=rf"the same tree in both \({hint}\)"):
        tracin(loss)(point, [1.0], batches, (x, y))
    # Where no other set tells, the loss fails on such a list.
    with pytest.raises(ValueError, match=rf"(?s)to unpack.* list of 3: {hint}"):
        self_influence(loss)(point, [1.0], batches)
    with pytest.raises(TypeError, match=rf"(?s)list of 2: {hint}"):
        self_influence(product_loss)(point, [1.0], [x, x])
    assert self_influence(loss)(point, [1.0], iter(batches)).shape == (12,)


@pytest.mark.parametrize("name", ALL)
def test_choices_of_another_kind(name):
    args = build("dense")
    hint = r"where is 3; wanted a list of paths.* or a predicate .* \('w',\)"
    with pytest.raises(TypeError, match=hint):
        call(name, *args, where=3)


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
    params = at(checkpoints, 0)
    with pytest.raises(ValueError, match="known paths"):
        forms(loss, where=[("nowhere",)])(params, train[0])
    with pytest.raises(ValueError, match="wanted one floating scalar"):
        forms(lambda p, x: x)(params, train[0])
