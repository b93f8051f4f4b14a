"""Laws, the recorded run, composition and errors of trace_sgd."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxmethods.influence import _chunks, trace_sgd
from tests.influence.definition import assert_close, at, build, per_example, scores

N, M, STEPS = 5, 3, 6
ORDER = jnp.asarray([3, 0, 3, 1, 1, 3])


def start(name="dense"):
    """(loss, the first checkpoint, train, test) of a member of LOSSES."""
    loss, checkpoints, _, train, test = build(name, n=N, m=M)
    return loss, at(checkpoints, 0), train, test


@functools.cache
def compiled(name="dense"):
    return jax.jit(trace_sgd(start(name)[0]))


@functools.cache
def each(loss):
    """The loss of each example, compiled."""
    return jax.jit(jax.vmap(loss, (None, 0)))


def by_hand(loss, params, rates, train, order):
    """The parameters before each step and after the last."""
    path = [jax.tree.map(np.asarray, params)]
    for i, rate in zip(np.asarray(order), np.asarray(rates, np.float32), strict=True):
        slopes = jax.tree.map(np.asarray, per_example(loss)(path[-1], train))
        step = jax.tree.map(lambda g, i=i, r=rate: r * g[i], slopes)
        path.append(jax.tree.map(np.subtract, path[-1], step))
    return path


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, N - 1), min_size=STEPS, max_size=STEPS),
    st.lists(st.integers(0, 64), min_size=STEPS, max_size=STEPS),
)
def test_rows_sum_to_the_fall_of_the_loss(order, rates):
    loss, params, train, test = start()
    rates = np.asarray(rates, np.float32) / 64
    got = compiled()(params, rates, train, np.asarray(order), test)
    before, after = (np.asarray(each(loss)(p, test)) for p in (params, got.params))
    got = got._replace(influence=np.asarray(got.influence))
    # Every step rounds the losses once, on the way they rise by as much as they fall.
    largest = np.abs(before) + np.abs(got.influence).sum(1)
    rounding = 4 * STEPS * np.finfo(np.float32).eps * largest
    fall = before - after
    assert (np.abs(got.influence.sum(1) - fall) <= rounding.max()).all()
    unseen = np.setdiff1d(np.arange(N), order)
    assert not got.influence[:, unseen].any()
    assert not np.asarray(got.first_order)[:, unseen].any()
    assert got.influence.shape == got.first_order.shape == (M, N)


@pytest.mark.parametrize("name", ["dense", "convolutions_and_pools"])
def test_the_definition_step_by_step(name):
    loss, params, train, test = start(name)
    rates = 0.05 + 0.01 * jnp.arange(STEPS)
    got = compiled(name)(params, rates, train, ORDER, test)
    path = by_hand(loss, params, rates, train, ORDER)
    jax.tree.map(assert_close, got.params, path[-1])
    losses = np.stack([each(loss)(p, test) for p in path])
    influence = np.zeros((M, N))
    np.add.at(influence.T, ORDER, losses[:-1] - losses[1:])
    assert_close(got.influence, influence)
    # What tracin makes of a checkpoint before each step, one example each.
    first = np.zeros((M, N))
    for i, rate, p in zip(np.asarray(ORDER), np.asarray(rates), path[:-1], strict=True):
        first[:, i] += scores(loss, [p], [rate], train, test)[:, i]
    assert_close(got.first_order, first)


def test_the_first_order_is_off_by_the_square_of_the_rate(x64):
    loss, params, train, test = start()
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (params, train, test))
    fn, errors = jax.jit(trace_sgd(loss)), []
    for rate in (2**-9, 2**-10, 2**-11):
        got = fn(wide[0], rate, wide[1], ORDER, wide[2])
        errors.append(float(jnp.abs(got.influence - got.first_order).max()))
    assert 3.9 < errors[0] / errors[1] < 4.1
    assert 3.95 < errors[1] / errors[2] < 4.05


def test_the_recorded_run(shared, x64):
    with np.load(shared / "goldens" / "16-tracin.npz") as file:
        data = {k[7:]: jnp.asarray(file[k]) for k in file if k.startswith("ideal__")}

    def loss(p, example):
        logits = example[0] @ p["W"] + p["b"]
        return jax.nn.logsumexp(logits) - logits[example[1]]

    train, test = ((data[f"x_{s}"], data[f"y_{s}"]) for s in ("train", "test"))
    params = {"W": data["W0"], "b": data["b0"]}
    trace = jax.jit(trace_sgd(loss))
    got = trace(params, data["lr"], train, data["order"], test)
    assert_close(got.params["W"], data["WT"], 1e-9)
    assert_close(got.params["b"], data["bT"], 1e-9)
    assert_close(got.influence, data["ideal"], 1e-9)
    assert_close(got.first_order, data["first_order"], 1e-9)


def test_a_loss_that_forward_mode_cannot_cross():
    loss, params, train, test = start("custom_derivative")
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda p: loss(p, train[0]), (params,), (params,))
    got = jax.jit(trace_sgd(loss))(params, 0.1, train, ORDER[:1], test)
    want = scores(loss, [params], [0.1], train, test)
    assert_close(np.asarray(got.first_order)[:, 3], want[:, 3])
    after = by_hand(loss, params, [0.1], train, ORDER[:1])[-1]
    fall = np.subtract(each(loss)(params, test), each(loss)(after, test))
    assert_close(np.asarray(got.influence)[:, 3], fall)


def test_plain_call_jit_and_vmap_over_models():
    loss, params, train, test = start()
    trace = trace_sgd(loss)
    want = compiled()(params, 0.1, train, ORDER, test)
    jax.tree.map(assert_close, trace(params, 0.1, train, ORDER, test), want)
    half = jax.tree.map(lambda x: 0.5 * x, params)
    both = jax.tree.map(lambda *x: jnp.stack(x), params, half)
    orders = jnp.stack([ORDER, ORDER[::-1]])
    mapped = jax.jit(jax.vmap(trace, (0, None, None, 0, None)))
    got = mapped(both, 0.1, train, orders, test)
    jax.tree.map(lambda a, b: assert_close(a[0], b), got, want)
    want = compiled()(half, 0.1, train, ORDER[::-1], test)
    jax.tree.map(lambda a, b: assert_close(a[1], b), got, want)


def test_chunks_change_nothing(monkeypatch):
    loss, params, train, test = start()
    want = compiled()(params, 0.1, train, ORDER, test)
    monkeypatch.setattr(_chunks, "BUDGET", 1)
    got = trace_sgd(loss)(params, 0.1, train, ORDER, test)
    jax.tree.map(functools.partial(assert_close, rtol=1e-5), got, want)


def test_test_examples_over_devices():
    loss, params, train, _ = start()
    test = build("dense", m=16)[4]
    want = compiled()(params, 0.1, train, ORDER, test)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def scores(test):
        got = trace_sgd(loss)(params, 0.1, train, ORDER, test)
        # Each device makes the same run.
        return got.influence, got.first_order, got.params["v"][None]

    mapped = jax.shard_map(scores, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    influence, first_order, v = jax.jit(mapped)(test)
    assert_close(influence, want.influence, 1e-5)
    assert_close(first_order, want.first_order, 1e-5)
    for own in v:
        assert_close(own, want.params["v"], 1e-6)


def test_derivative_with_respect_to_the_rates(x64):
    loss, params, train, test = start()
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (params, train, test))

    def scores(rates):
        return trace_sgd(loss)(wide[0], rates, wide[1], ORDER[:3], wide[2])[1:]

    rates = jnp.asarray([0.1, 0.02, 0.05])
    check_grads(jax.jit(scores), (rates,), order=1, modes=("rev",))


def test_no_step_no_test_example_and_leaves_that_are_not_trained():
    loss, params, train, test = start()
    got = trace_sgd(loss)(params, 0.1, train, ORDER[:0], test)
    jax.tree.map(np.testing.assert_array_equal, got.params, params)
    assert not got.influence.any()
    assert not got.first_order.any()
    assert compiled()(params, 0.1, train, ORDER, test[:0]).influence.shape == (0, N)

    def scaled(p, x):
        return loss(p, x) * p["times"][0]

    more = params | {"times": [jnp.int32(1)], "spare": jnp.ones(2)}
    got = trace_sgd(scaled)(more, 0.1, train, ORDER, test)
    assert jax.tree.structure(got.params) == jax.tree.structure(more)
    assert got.params["times"][0].dtype == jnp.int32
    assert got.params["spare"].tolist() == [1, 1]
    want = compiled()(params, 0.1, train, ORDER, test)
    assert_close(got.influence, want.influence, 1e-5)


def test_dtypes():
    loss, params, train, test = start()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, train, test))
    short = ORDER.astype(jnp.uint8)
    got = jax.jit(trace_sgd(loss))(half[0], 0.1, half[1], short, half[2])
    assert {x.dtype for x in jax.tree.leaves(got.params)} == {jnp.dtype(jnp.bfloat16)}
    assert got.influence.dtype == got.first_order.dtype == jnp.float32
    # bfloat16 has 8 bits: gradients are off by some of its steps.
    want = compiled()(params, 0.1, train, ORDER, test)
    assert_close(got.first_order, want.first_order, 0.1)


@pytest.mark.parametrize("index", [-1, N])
def test_a_traced_order_outside_train_shows(index):
    _, params, train, test = start()
    order = ORDER.at[2].set(index)
    got = compiled()(params, 0.1, train, order, test)
    assert jnp.isnan(got.params["w"]).all()
    assert jnp.isnan(got.influence[:, 1]).all()


def test_memory_does_not_grow_with_the_steps():
    loss, params, train, _ = start()
    test = jnp.zeros((64, 6))

    def used(steps):
        args = params, 0.1, train, jnp.zeros(steps, int), test
        compiled_fn = jax.jit(trace_sgd(loss)).lower(*args).compile()
        return compiled_fn.memory_analysis().temp_size_in_bytes

    assert used(2000) - used(1000) < 1000 * 16  # A rate and an index a step.


def test_the_loss_is_traced_once_a_set():
    loss, params, train, test = start()
    calls = []

    def counted(params, example):
        calls.append(1)
        return loss(params, example)

    trace_sgd(counted)(params, 0.1, train, ORDER, test)
    assert len(calls) == 1


BAD = {
    "an order outside": ({"order": [0, N]}, r"order holds 5; wanted .*0\.\.4"),
    "a negative order": ({"order": [-1, 0]}, "order holds -1; wanted training ex"),
    "an order with two axes": ({"order": [[0], [1]]}, r"int32\[2,1\]; wanted one axis"),
    "rates unequal to the steps": (
        {"learning_rate": [0.1, 0.1]},
        r"learning_rate is float32\[2\] for 6 steps; wanted a scalar, or one rate",
    ),
    "a negative rate": ({"learning_rate": -0.1}, r"with -0\.1.* in it; wanted finite"),
    "a rate that is not finite": (
        {"learning_rate": np.inf},
        "inf in it; wanted finite",
    ),
    "no training example": ({"train": jnp.ones((0, 6))}, "train has no examples"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    loss, params, train, test = start()
    args = {"learning_rate": 0.1, "train": train, "order": ORDER, "test": test}
    changed, hint = BAD[case]
    with pytest.raises(ValueError, match=hint):
        trace_sgd(loss)(params, **args | changed)


def test_a_step_or_a_test_example_that_is_not_finite():
    loss, params, train, test = start()
    with pytest.raises(ValueError, match=r"step 1, on training example 0, is not fin"):
        trace_sgd(loss)(params, 0.1, train.at[0].set(jnp.nan), ORDER, test)
    with pytest.raises(ValueError, match=r"not finite: the score.* of test.*2"):
        trace_sgd(loss)(params, 0.1, train, ORDER, test.at[2].set(jnp.nan))
    got = compiled()(params, 0.1, train.at[0].set(jnp.nan), ORDER, test)
    assert jnp.isnan(got.params["w"]).any()


def test_bad_kinds():
    loss, params, train, test = start()
    with pytest.raises(TypeError, match=r"order is float32\[6\]; wanted integers"):
        trace_sgd(loss)(params, 0.1, train, ORDER.astype(jnp.float32), test)
    with pytest.raises(ValueError, match=r"float32\[4\].*wanted one floating scalar"):
        trace_sgd(lambda p, x: x @ p["w"])(params, 0.1, train, ORDER, test)
