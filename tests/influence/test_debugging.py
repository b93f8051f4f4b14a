"""Debugging: what each method fits, holds, reads, reports and refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.influence.debugging import debug, find_in_danger

N, M, WIDTH, CLASSES = 67, 6, 4, 3
X, Y = np.zeros((M, WIDTH), np.float32), np.zeros(M, int)
METHODS = ["debug_only", "in_danger", "random", "l2_ball", "l2_penalty", "kl", "fisher"]
EPOCHS = ["epoch", "intensive"]
RATE = 0.05


def logits(params, x):
    return x @ params["w"] + params["b"][None]


def predict(params, x):
    return jnp.argmax(logits(params, x), -1)


def loss(params, example):
    scores = logits(params, example[0][None])[0]
    return jax.nn.logsumexp(scores) - scores[example[1]]


def model(seed=0):
    """Parameters, a debug set they get wrong, and an original one, mostly right."""
    draw = np.random.default_rng(seed)
    params = {"w": draw.normal(size=(WIDTH, CLASSES)), "b": np.zeros(CLASSES)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), params)
    x = jnp.asarray(draw.normal(size=(N, WIDTH)), jnp.result_type(float))
    right = np.asarray(predict(params, x))
    y = np.where(draw.random(N) < 0.1, (right + 1) % CLASSES, right)
    bug = jnp.asarray(draw.normal(size=(M, WIDTH)) - 2, jnp.result_type(float))
    target = np.bincount(predict(params, bug), minlength=CLASSES).argmin()
    return params, (bug, jnp.full(M, target)), (x, jnp.asarray(y))


@functools.cache
def compiled(method, **options):
    """`debug` of the model by one method, jitted."""
    options = {"optimizer": optax.adam(RATE), "logits": logits} | options

    @jax.jit
    def run(params, bug, original, key, **scales):
        how = options | scales
        return debug(loss, predict, params, bug, original, key, method=method, **how)

    return run


SCALES = {"weight": 0.1, "radius": 1.5}


def run(method, case, key=0, **scales):
    return compiled(method)(*case, jax.random.key(key), **SCALES | scales)


def distance(p, q):
    return float(optax.tree.norm(optax.tree.sub(p, q)))


def assert_same(a, b, rtol=0.0):
    atol = rtol and 1e-6
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


@jax.jit
def descend(params, examples, steps):
    """Adam on the mean loss, by hand."""
    optimizer = optax.adam(RATE)

    def mean_loss(params):
        return jax.vmap(loss, (None, 0))(params, examples).mean()

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(mean_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    start = (params, optimizer.init(params))
    return jax.lax.fori_loop(0, steps, step, start)[0]


# --------------------------------------------------------------- what a method fits


@pytest.mark.parametrize("method", METHODS + EPOCHS)
def test_what_a_method_returns(method):
    case = model()
    params, bug, _ = case
    done = run(method, case)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), p) for p in (params, done[0])]
    assert shapes[0] == shapes[1]
    assert distance(done.params, params) > 0
    assert bool(done.solved) == bool((predict(done.params, bug[0]) == bug[1]).all())
    if method in METHODS:
        before, after = (
            (predict(p, bug[0]) == bug[1]).mean() for p in (params, done[0])
        )
        assert after > before
    steps = int(done.steps)
    passes = {"debug_only": 0, "random": 20 / N, "l2_ball": 0, "l2_penalty": 0}
    passes |= {"kl": steps * 20 / N, "fisher": 1, "epoch": 1, "intensive": 1}
    if method == "in_danger":
        passes[method] = find(case, 0).scanned / N
    np.testing.assert_allclose(done.passes, passes[method], rtol=1e-6)
    most = {"epoch": -(-(N + M) // 32), "intensive": -(-N // 32), "in_danger": 200}
    assert 1 <= steps <= most.get(method, 100)
    if method in EPOCHS:
        assert steps == most[method]


def find(case, key):
    """Those in danger, after `debug_only`."""
    params, _, (x, y) = case
    after = run("debug_only", case).params
    return find_in_danger(predict, params, after, x, y, jax.random.key(key))


@pytest.mark.parametrize("method", METHODS + EPOCHS)
def test_a_debug_set_that_is_right_moves_nothing(method):
    params, (x, _), original = model()
    done = run(method, (params, (x, predict(params, x)), original))
    assert_same(done.params, params)
    assert (int(done.steps), float(done.passes), bool(done.solved)) == (0, 0, True)


def test_debug_only_stops_at_the_first_step_that_is_right():
    params, (x, y), original = case = model()
    done = run("debug_only", case)
    steps = int(done.steps)
    assert_same(done.params, descend(params, (x, y), steps), rtol=1e-4)
    right = [(predict(descend(params, (x, y), n), x) == y).all() for n in range(steps)]
    assert steps > 2 and bool(done.solved) and not any(right)
    torn = (jnp.concatenate([x, x]), jnp.concatenate([y, (y + 1) % CLASSES]))
    done = compiled("debug_only", max_steps=3)(
        params, torn, original, jax.random.key(0)
    )
    assert (int(done.steps), bool(done.solved)) == (3, False)


@pytest.mark.parametrize("method", ["in_danger", "random"])
def test_original_examples_are_fitted_from_the_start(method):
    params, bug, original = case = model()
    steps = int(run(method, case).steps)
    if method == "in_danger":
        found = find(case, 0)
        rows = found.indices[found.valid]
        steps -= int(run("debug_only", case).steps)
    else:
        rows = jax.random.permutation(jax.random.key(0), N)[:20]
    assert 3 < len(rows) <= 20
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b[rows]]), bug, original)
    assert_same(run(method, case).params, descend(params, both, steps), rtol=1e-3)
    assert distance(run(method, case, key=1).params, run(method, case).params) > 0


def test_with_nobody_in_danger_it_is_debug_only():
    params, bug, (x, _) = model()
    lost = (params, bug, (x, (predict(params, x) + 1) % CLASSES))
    done, alone = run("in_danger", lost), run("debug_only", lost)
    assert_same(done.params, alone.params, rtol=1e-5)
    assert int(done.steps) == 2 * int(alone.steps) and float(done.passes) == 1


def test_in_danger_keeps_those_it_found():
    params, _, (x, y) = case = model()
    found = find(case, 0)
    rows = found.indices[found.valid]
    alone, done = (run(method, case).params for method in ("debug_only", "in_danger"))
    kept = [(predict(p, x[rows]) == y[rows]).mean() for p in (params, alone, done)]
    assert kept[0] == 1 and kept[1] == 0 and kept[2] > 0.5


def test_few_originals_are_all_drawn():
    params, bug, (x, y) = model()
    few = (x[:5], y[:5])
    done = compiled("random")(params, bug, few, jax.random.key(0))
    assert float(done.passes) == 1
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), bug, few)
    assert_same(done.params, descend(params, both, int(done.steps)), rtol=1e-4)


@pytest.mark.parametrize("method", EPOCHS)
def test_an_epoch_sees_each_example_once(method):
    n, m, size = 10, 2, 4

    def count(params, example):  # its gradient marks the example
        return -params[example[0]]

    def wrong(params, x):
        return jnp.zeros(x.shape, int)

    bug, original = (
        (n + jnp.arange(m), jnp.ones(m, int)),
        (jnp.arange(n), jnp.ones(n, int)),
    )
    options = dict(method=method, optimizer=optax.sgd(1.0), batch_size=size)
    done = debug(
        count, wrong, jnp.zeros(n + m), bug, original, jax.random.key(0), **options
    )
    want = np.ones(n + m) / size
    if method == "intensive":  # batches of 4, 4 and 2, and the debug set in each
        want[n:] = 2 / 6 + 1 / 4
        parts = [1 / 6] * 8 + [1 / 4] * 2
        np.testing.assert_allclose(np.sort(done.params[:n]), parts, rtol=1e-6)
        want[:n] = done.params[:n]
    np.testing.assert_allclose(done.params, want, rtol=1e-6)
    assert int(done.steps) == 3 and not done.solved


# ------------------------------------------------------------------ what holds it


def test_no_weight_and_a_wide_ball_are_debug_only_to_the_bit():
    case = model()
    free = run("debug_only", case)
    for method in ("l2_penalty", "kl", "fisher"):
        held = run(method, case, weight=0.0)
        assert_same((held.params, held.steps), (free.params, free.steps))
    assert_same(run("l2_ball", case, radius=1e3).params, free.params)
    assert_same(run("l2_ball", case, radius=np.inf).params, free.params)


def test_the_ball_holds():
    case = model()
    far = distance(run("debug_only", case).params, case[0])
    for radius in (0.2 * far, 0.7 * far):
        moved = distance(run("l2_ball", case, radius=radius).params, case[0])
        np.testing.assert_allclose(moved, radius, rtol=1e-5)
    assert_same(run("l2_ball", case, radius=0.0).params, case[0])


def test_heavy_penalties_hold_parameters_or_answers():
    params, _, (x, _) = case = model()
    free = run("debug_only", case).params
    for method, weight in (("l2_penalty", 100.0), ("fisher", 1e4)):
        held = run(method, case, weight=weight)
        assert distance(held.params, params) < 0.3 * distance(free, params)
        assert not held.solved
    old = jax.nn.log_softmax(logits(params, x))
    new = [
        jax.nn.log_softmax(logits(p, x))
        for p in (free, run("kl", case, weight=100.0)[0])
    ]
    drift = [float((jnp.exp(old) * (old - some)).sum(-1).mean()) for some in new]
    assert drift[1] < 0.3 * drift[0]


# ------------------------------------------------------------------- composition


def test_a_plain_call_is_the_jitted_one():
    case = model()
    options = {"optimizer": optax.adam(RATE), "logits": logits}
    plain = debug(loss, predict, *case, jax.random.key(2), **options)
    assert_same(plain, run("in_danger", case, key=2), rtol=1e-4)


@pytest.mark.parametrize("method", ["in_danger", "kl"])
def test_vmap_is_one_call_a_row(method):
    case = model()
    weights = jnp.asarray([0.0, 0.1, 1.0])

    def step(seed, weight):
        return compiled(method)(*case, jax.random.key(seed), weight=weight)

    many = jax.jit(jax.vmap(step))(jnp.arange(3), weights)
    for i, weight in enumerate(weights):
        one = step(i, weight)
        assert_same(jax.tree.map(lambda x, i=i: x[i], many), one, rtol=1e-4)


def test_each_device_debugs_on_its_own_examples():
    params, bug, (x, y) = model()
    x, y = jnp.stack([x, x[::-1]]), jnp.stack([y, y[::-1]])
    mesh = Mesh(np.array(jax.devices()[:2]), "d")
    options = {"optimizer": optax.adam(RATE)}

    def local(x, y):
        key = jax.random.fold_in(jax.random.key(0), jax.lax.axis_index("d"))
        done = debug(loss, predict, params, bug, (x[0], y[0]), key, **options)
        return jax.tree.map(lambda a: a[None], done)

    got = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P("d"))
    )(x, y)
    for i in range(2):
        key = jax.random.fold_in(jax.random.key(0), i)
        want = compiled("in_danger")(params, bug, (x[i], y[i]), key, **SCALES)
        assert_same(jax.tree.map(lambda a, i=i: a[i], got), want, rtol=1e-4)


def test_float64_and_parameters_that_are_not_tuned(x64):
    params, bug, original = model()
    counted = {"net": params, "epoch": jnp.int32(3), "none": None}
    done = jax.jit(
        lambda params: debug(
            lambda p, e: loss(p["net"], e),
            lambda p, x: predict(p["net"], x),
            params,
            bug,
            original,
            jax.random.key(0),
            method="debug_only",
            optimizer=optax.adam(RATE),
        )
    )(counted)
    assert done.params["epoch"] == 3 and done.params["none"] is None
    assert done.params["net"]["w"].dtype == jnp.float64
    alone = descend(params, bug, done.steps)
    assert_same(done.params["net"], alone, 1e-9)


def test_half_precision():
    params, bug, original = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, model()
    )
    done = run("fisher", (params, bug, original))
    assert done.params["w"].dtype == jnp.bfloat16
    right = [(predict(p, bug[0]) == bug[1]).sum() for p in (params, done.params)]
    assert right[1] > right[0]


# ------------------------------------------------------------------------- refusals


def broken_loss(params, example):
    """Its gradient is NaN wherever the parameters are not where they began."""
    return loss(params, example) + jnp.sqrt(-jnp.abs(params["b"]).sum())


# Alone, the label 0 is what an argmax over NaN answers.
@pytest.mark.parametrize("method, labels", [("debug_only", 1), ("in_danger", 2)])
def test_a_gradient_that_is_nan_is_seen(method, labels):
    params, (x, _), original = model()
    params["b"] = params["b"] - jnp.asarray([9.0, 0, 0])
    bug = (x, jnp.arange(M) % labels)

    def step(bug):
        key = jax.random.key(0)
        return debug(broken_loss, predict, params, bug, original, key, method=method)

    done = jax.jit(step)(bug)
    assert int(done.steps) == 1 and not done.solved
    assert np.isnan(done.params["w"]).any() or np.isnan(done.params["b"]).any()


def test_a_gradient_that_is_nan_is_named_where_values_are_seen():
    params, (x, _), original = model()
    params["b"] = params["b"] - jnp.asarray([9.0, 0, 0])
    args = broken_loss, predict, params, (x, jnp.zeros(M, int)), original
    with pytest.raises(ValueError, match=r"after 1 steps of .*\('b',\).* not finite"):
        debug(*args, jax.random.key(0), method="debug_only")


def test_parameters_that_are_nan_stay_so():
    params, (x, _), original = model()
    params["w"] = params["w"] * np.nan
    with pytest.raises(ValueError, match=r"params is not finite at \[\('w',\)\]"):
        debug(
            loss, predict, params, (x, jnp.zeros(M, int)), original, jax.random.key(0)
        )
    done = run("in_danger", (params, (x, jnp.zeros(M, int)), original))
    assert int(done.steps) == 0 and not done.solved and np.isnan(done.params["w"]).all()


@pytest.mark.parametrize(
    "change, kind, hint",
    [
        (
            {"method": "ewc"},
            ValueError,
            r"method is 'ewc'; wanted one of \['debug_only'",
        ),
        ({"method": "kl", "logits": None}, ValueError, "without logits; wanted logits"),
        ({"debug_set": (X[:0], Y[:0])}, ValueError, "debug_set has no examples"),
        ({"original_set": (X[:0], Y[:0])}, ValueError, "original_set has no examples"),
        ({"debug_set": X}, TypeError, r"debug_set is .*pair: \(inputs, labels\)"),
        (
            {"debug_set": (X, Y[1:])},
            ValueError,
            r"debug_set: labels is int.*\[5\] for 6",
        ),
        ({"debug_set": (X, Y + 3)}, ValueError, r"label 3; wanted 0\.\.2"),
        ({"original_set": (X, Y - 1)}, ValueError, "original_set has the label -1"),
        ({"debug_set": (X[:, 1:], Y)}, ValueError, r"\[6,3\] and .*pad to one length"),
        ({"debug_set": (X.astype(int), Y)}, ValueError, "wanted the same structure"),
        ({"max_steps": 0}, ValueError, "max_steps is 0; wanted at least 1"),
        ({"limit": 0}, ValueError, "limit is 0; wanted at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; wanted at least 1"),
        ({"radius": -1.0}, ValueError, "radius is -1.0; wanted 0 or more"),
        ({"weight": np.nan}, ValueError, "weight is nan; wanted 0 or more"),
        ({"weight": np.ones(2)}, ValueError, r"weight is float64\[2\]; .*vmap"),
        ({"optimizer": 1e-3}, TypeError, "optimizer is float 0.001; .*optax.adam"),
        ({"key": 0}, TypeError, "key is int 0; wanted a typed key"),
        (
            {"params": {"w": np.zeros(2, int)}},
            ValueError,
            "wanted a floating parameter",
        ),
        ({"params": {"w": np.zeros(2, complex)}}, TypeError, "wanted real parameters"),
        ({"loss": lambda p, e: e[0]}, ValueError, r"float32\[4\]; wanted one floating"),
        ({"predict": logits}, ValueError, r"predict returns float32\[6,3\].* argmax"),
        ({"logits": predict}, ValueError, r"int.*\[6\] for 6 inputs; wanted \[6, n_cl"),
    ],
)
def test_refusals_of_debug(change, kind, hint):
    params = {"w": np.zeros((WIDTH, CLASSES), np.float32), "b": np.zeros(CLASSES)}
    right = {"loss": loss, "predict": predict, "params": params, "logits": logits}
    right |= {"debug_set": (X, Y), "original_set": (X, Y), "key": jax.random.key(0)}
    with pytest.raises(kind, match=hint):
        debug(**right | change)


def test_an_original_set_that_is_not_read_may_be_empty():
    params, bug, (x, y) = model()
    empty = (params, bug, (x[:0], y[:0]))
    done = run("debug_only", empty)
    assert_same(done.params, run("debug_only", model()).params)
