import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods.robust import apgd, strongest
from jaxmethods.robust.apgd import OBJECTIVES, _Best, _checkpoint, _Search, checkpoints

RUNS = ("linf_ce", "linf_dlr", "l2_ce", "l2_dlr")


def with_a_black_row(x):
    """Logits of (B, 2, 2); their gradient is NaN in the second row where it is 0."""
    lead = x[:, 0, 0] - 0.5 + 0.1 * jnp.linalg.norm(x[:, 1], axis=1)
    return jnp.stack([lead, -lead, 0 * lead - 9], 1)


# ------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_entries_whose_gradient_is_nan_do_not_stop_the_others(norm, objective):
    x = jnp.zeros((2, 2, 2)).at[:, 0, 0].set(jnp.array([0.55, 0.45]))
    y, how = jnp.array([0, 1]), {"num_steps": 10, "norm": norm, "objective": objective}
    for eps, robust in [(0.01, True), (0.1, False)]:
        found = apgd(with_a_black_row, x, y, eps=eps, **how)
        assert np.isfinite(found.x).all() and np.isfinite(found.loss).all()
        assert found.robust.tolist() == [robust, robust]


def test_logits_that_are_nan_are_not_right():
    logits = lambda x: jnp.where(x[:, :1] < 0.5, jnp.nan, jnp.ones((1, 2)))  # noqa: E731
    found = apgd(
        logits, jnp.array([[0.4], [0.9]]), jnp.array([0, 0]), eps=0, num_steps=1
    )
    assert found.robust.tolist() == [False, True]


@pytest.mark.parametrize("num_steps", [1, 2, 10, 40, 100, 1000])
def test_checkpoints_follow_the_recursion_of_the_paper(num_steps):
    table = checkpoints(num_steps)
    ends = np.flatnonzero(table) + 1
    assert np.array_equal(np.diff(ends, prepend=0), table[ends - 1])
    if num_steps == 100:  # p1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06)
        assert ends.tolist() == [22, 41, 57, 70, 80, 87, 93, 99]


def test_a_step_is_halved_where_few_steps_rose_or_the_best_loss_stalled():
    """Conditions 1 and 2 of section 3.2, one input a column."""
    rises = jnp.array([3, 4, 4, 4, 0])
    halved = jnp.array([False, False, False, True, True])
    improved = jnp.array([True, True, False, False, True])
    want = np.array([True, False, True, False, True])
    point, best, loss = jnp.zeros((5, 2)), jnp.ones((5, 2)), jnp.ones(5)
    search = _Search(
        point=point,
        previous=point,
        gradient=point,
        loss=loss,
        best=_Best(best, best, loss),
        robust=halved,
        step_size=jnp.ones((5, 1)),
        rises=rises,
        halved=halved,
        best_at_checkpoint=jnp.where(improved, 0.5, 1.0),
    )
    after = _checkpoint(search, jnp.array(4), 0.75)
    assert np.array_equal(after.step_size[:, 0], np.where(want, 0.5, 1))
    assert np.array_equal(after.point[:, 0], want)
    assert np.array_equal(after.gradient[:, 0], want)
    assert np.array_equal(after.halved, want)
    assert np.array_equal(after.rises, np.zeros(5))
    assert np.array_equal(after.best_at_checkpoint, loss)
    between = _checkpoint(search, jnp.array(0), 0.75)
    assert all(map(np.array_equal, between[5:], search[5:]))


def test_dlr_does_not_change_with_scale_or_shift_and_its_sign_is_the_decision():
    z = jax.random.normal(jax.random.key(0), (50, 5))
    y = jnp.arange(50) % 5
    dlr = OBJECTIVES["dlr"][0]
    np.testing.assert_allclose(dlr(30 * z + 7, y), dlr(z, y), rtol=1e-3, atol=1e-4)
    assert np.array_equal(dlr(z, y) > 0, z.argmax(1) != y)
    example = dlr(jnp.array([[4.0, 1, 3, 0]]), jnp.array([2]))
    np.testing.assert_allclose(example, [1 / 3], rtol=1e-6)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_on_a_linear_model_it_reaches_the_optimum(norm, dual):
    r = np.random.default_rng(1)
    w, x = jnp.asarray(r.normal(size=(6, 1))), jnp.asarray(r.normal(size=(8, 6)))
    y = jnp.arange(8) % 2

    def logits(x):
        return jnp.concatenate([0 * (x @ w), x @ w], axis=1)

    options = dict(eps=0.4, num_steps=10, norm=norm, bounds=(-99.0, 99.0))
    attack = apgd(logits, x, y, **options)
    margin = (2 * y - 1) * (x @ w)[:, 0] - 0.4 * np.linalg.norm(w[:, 0], dual)
    np.testing.assert_allclose(attack.loss, np.logaddexp(0, -margin), rtol=1e-4)
    assert np.array_equal(attack.robust, margin > 0)


def test_one_wrong_iterate_is_enough():
    # At 0 class 1 wins with loss .82; at .5 class 0 is right, with loss 1.07.
    def logits(x):
        t = 2 * x[:, 0]
        return jnp.stack([0 * t, 0.2 - 0.25 * t**2, 2.95 * t - 3], axis=1)

    attack = apgd(logits, jnp.zeros((1, 1)), jnp.zeros(1, int), eps=0.5, num_steps=5)
    np.testing.assert_allclose(attack.x, [[0.5]], rtol=1e-6)
    np.testing.assert_allclose(attack.loss, [np.log(1 + 2 * np.exp(-0.05))], rtol=1e-5)
    assert not attack.robust[0]


@pytest.mark.parametrize("name", RUNS)
def test_eps_0_returns_x_and_the_best_loss_is_at_least_the_start(digits, name):
    norm, objective = name.split("_")
    d = digits("apgd")
    run = jax.jit(
        lambda eps: apgd(
            d.logits, d.x, d.y, eps=eps, num_steps=6, norm=norm, objective=objective
        )
    )
    still, moved = run(0.0), run(0.2)
    clean = d.logits(d.x)
    assert np.array_equal(still.x, d.x)
    assert np.array_equal(still.robust, clean.argmax(1) == d.y)

    def of(x):
        return OBJECTIVES[objective][0](d.logits(x), jnp.asarray(d.y))

    np.testing.assert_allclose(moved.loss, of(moved.x), rtol=1e-3, atol=1e-5)
    assert np.all(moved.loss >= of(d.x))
    assert np.any(moved.loss > of(d.x))


def test_a_random_start_is_another_run(digits):
    d = digits("apgd")

    def run(key):
        return apgd(d.logits, d.x, d.y, eps=0.1, num_steps=2, key=key)

    runs = jax.vmap(run)(jax.random.split(jax.random.key(2), 3))
    best = strongest(runs)
    np.testing.assert_allclose(best.loss, runs.loss.max(0))
    assert np.array_equal(best.robust, runs.robust.all(0))
    assert np.abs(runs.x - run(None).x[None]).max(axis=(1, 2, 3)).min() > 1e-3


# ---------------------------------------------------------------------------- goldens


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_the_reference_code(x64, digits, name):
    d = digits("apgd")
    norm, objective = name.split("_")
    eps, num_steps, rho = d.golden[f"{name}_hyper"]
    options = dict(eps=eps, num_steps=int(num_steps), rho=rho)
    attack = apgd(d.logits, d.x, d.y, norm=norm, objective=objective, **options)
    assert np.array_equal(attack.robust, d.golden[f"{name}_robust"])
    # On the plateau of dlr (y ranks third, loss 1) points drift by rounding.
    want = d.golden[f"{name}_adv_best_loss"]
    np.testing.assert_allclose(attack.x, want, rtol=0, atol=1e-4)
    np.testing.assert_allclose(attack.loss, d.golden[f"{name}_loss_best"], rtol=1e-5)


# ------------------------------------------------------------------------ composition


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eager_jit_vmap_and_shard_map_agree(conv_net, mesh, norm):
    x = jax.random.uniform(jax.random.key(3), (8, 8, 8, 2))
    y = jnp.arange(8) % 3

    def run(x, y, eps):
        return apgd(
            conv_net.logits, x, y, eps=eps, num_steps=6, norm=norm, objective="dlr"
        )

    want = run(x, y, 0.1)
    traces = []
    compiled = jax.jit(lambda *args: traces.append(1) or run(*args))
    compiled(x, y, 0.3)
    together = jax.vmap(lambda eps: run(x, y, eps))(jnp.array([0.0, 0.1]))
    specs = (P("data"), P("data"), P())
    spread = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P("data"))
    others = [compiled(x, y, 0.1), jax.tree.map(lambda leaf: leaf[1], together)]
    assert len(traces) == 1
    for got in (*others, jax.jit(spread)(x, y, 0.1)):
        np.testing.assert_allclose(got.loss, want.loss, rtol=1e-3, atol=1e-5)
        assert np.array_equal(got.robust, want.robust)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtype_follows_x_and_eps_is_per_input(x64, dtype):
    w = jnp.eye(3)[:2].astype(dtype)
    x, eps = jnp.full((3, 2), 0.5, dtype), np.array([0, 0.125, 0.25])
    attack = apgd(lambda x: x @ w, x, jnp.zeros(3, int), eps=eps, num_steps=3)
    assert attack.x.dtype == x.dtype and attack.loss.dtype == x.dtype
    np.testing.assert_allclose(attack.x[:, 0].astype("float32"), 0.5 - eps)


def test_inside_a_training_loss_no_gradient_passes(conv_net):
    x, y = jnp.full((2, 8, 8, 2), 0.5), jnp.array([0, 1])

    def total(net):
        attack = apgd(net.logits, x, y, eps=0.1, num_steps=2)
        return attack.x.sum() + attack.loss.sum()

    zeros = jax.tree.map(jnp.zeros_like, conv_net)
    chex.assert_trees_all_equal(jax.grad(total)(conv_net), zeros)


# ----------------------------------------------------------------------------- errors


def three_logits(x):
    return x @ jnp.eye(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "hint"),
    [
        (dict(norm="l7"), ValueError, "l7.*linf"),
        (dict(objective="cw9"), ValueError, "cw9.*dlr"),
        (dict(eps=-0.5), ValueError, "eps is -0.5"),
        (dict(rho=-0.5), ValueError, "rho is -0.5"),
        (dict(num_steps=0), ValueError, "at least 1"),
        (dict(y=jnp.zeros(4, int)), ValueError, r"y is int32\[4\].*shape \(3,\)"),
        (dict(y=jnp.zeros(3)), TypeError, "integer class labels"),
        (dict(y=jnp.array([0, 1, 3])), ValueError, r"labels 0\.\.3.*0\.\.2"),
        (dict(y=jnp.array([0, -1, 1])), ValueError, r"labels -1\.\.1"),
        (dict(logits=lambda x: x[:, 0]), ValueError, r"logits\(x\) is float32\[3\]"),
        (dict(logits=lambda x: x, objective="dlr"), ValueError, "3 classes or more"),
        (dict(key=1), TypeError, r"jax\.random\.key\(0\)"),
    ],
)
def test_errors(change, error, hint):
    options = dict(logits=three_logits, y=jnp.arange(3), eps=0.1, num_steps=2) | change
    with pytest.raises(error, match=hint):
        apgd(options.pop("logits"), jnp.ones((3, 2)), options.pop("y"), **options)
