import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods.robust import pgd, strongest

NORMS = ("linf", "l2")
WIDE = (-100.0, 100.0)


def length(move, norm):
    move = np.asarray(move, np.float64).reshape(len(move), -1)
    return np.abs(move).max(1) if norm == "linf" else np.sqrt((move**2).sum(1))


def wavy(x):
    """A loss with many maxima."""
    return jnp.sin(7 * x).sum(1) + jnp.cos(11 * x[:, 0])


# ------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("keep_best", [False, True])
def test_entries_whose_gradient_is_nan_do_not_stop_the_others(norm, keep_best):
    loss = lambda x: x[:, 0] + jnp.linalg.norm(x[:, 1:], axis=1)  # noqa: E731
    x = jnp.array([[0.5, 0.0, 0.0], [0.5, 0.3, 0.4]])
    how = {"step_size": 0.02, "num_steps": 10, "norm": norm, "keep_best": keep_best}
    found = pgd(loss, x, eps=0.1, **how)
    assert found.x[0].tolist() == [pytest.approx(0.6), 0, 0]
    most = 0.1 + (0.2 if norm == "linf" else 0.1)
    assert 0.1 < found.loss[1] - 1 <= most and np.isfinite(found.loss).all()


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(seed=st.integers(0, 10**6), eps=st.floats(0.01, 2))
def test_on_a_linear_loss_it_reaches_the_optimum(norm, dual, seed, eps):
    r = np.random.default_rng(seed)
    w, x = jnp.asarray(r.normal(size=6)), jnp.asarray(r.normal(size=(4, 6)))
    w, x = w.astype("float32"), x.astype("float32")
    attack = LINEAR[norm](w, x, eps)
    want = x @ w + eps * np.linalg.norm(w, dual)
    np.testing.assert_allclose(attack.loss, want, rtol=1e-4, atol=1e-5)


def linear_attack(norm):
    options = dict(num_steps=4, norm=norm, bounds=WIDE)
    return jax.jit(
        lambda w, x, eps: pgd(lambda q: q @ w, x, eps=eps, step_size=eps / 3, **options)
    )


LINEAR = {norm: linear_attack(norm) for norm in NORMS}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("key", [None, 0])
def test_eps_0_returns_x_and_0_steps_the_start(norm, key):
    x = jax.random.uniform(jax.random.key(1), (5, 3))
    keys = (None, None) if key is None else jax.random.split(jax.random.key(key))
    options = dict(step_size=0.1, norm=norm)
    still = pgd(wavy, x, eps=0.0, num_steps=2, key=keys[0], **options)
    assert np.array_equal(still.x, x)
    start = pgd(wavy, x, eps=0.2, num_steps=0, key=keys[1], **options)
    assert np.array_equal(start.x, x) == (key is None)
    np.testing.assert_allclose(start.loss, wavy(start.x), rtol=1e-6)


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", NORMS)
def test_ball_and_bounds_hold_for_small_and_large_eps(norm, dtype):
    x = jax.random.uniform(jax.random.key(2), (6, 50)).astype(dtype)
    epss = np.float32([1e-4, 1e-2, 0.3, 3])
    key = jax.random.key(0)

    def run(eps):
        options = dict(step_size=eps / 2, num_steps=5, norm=norm)
        return pgd(wavy, x, eps=eps, key=key, **options)

    attacks = jax.vmap(run)(jnp.asarray(epss))
    assert attacks.x.dtype == x.dtype
    for eps, adv in zip(epss, attacks.x, strict=True):
        move = np.asarray(adv, np.float64) - np.asarray(x, np.float64)
        assert length(move, norm).max() <= eps * (1 + 1e-6)
    assert 0 <= attacks.x.min() and attacks.x.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_keep_best_is_the_running_maximum(norm):
    x = jax.random.uniform(jax.random.key(3), (8, 2))
    options = dict(eps=0.4, step_size=0.3, norm=norm)
    seen = np.asarray(wavy(x))
    for num_steps in range(1, 4):
        last = pgd(wavy, x, num_steps=num_steps, **options)
        best = pgd(wavy, x, num_steps=num_steps, keep_best=True, **options)
        seen = np.maximum(seen, last.loss)
        np.testing.assert_allclose(best.loss, seen, rtol=1e-5)
        np.testing.assert_allclose(wavy(best.x), best.loss, rtol=1e-5, atol=1e-6)
    assert np.any(last.loss < seen)  # it makes a difference


@pytest.mark.parametrize("norm", NORMS)
def test_only_the_direction_of_the_loss_counts(norm):
    x = jax.random.uniform(jax.random.key(4), (5, 3))
    options = dict(eps=0.3, step_size=0.1, num_steps=3, norm=norm)
    want = pgd(wavy, x, **options)
    faint = pgd(lambda x: 1e-25 * wavy(x), x, **options)
    np.testing.assert_allclose(faint.x, want.x, atol=1e-5)
    flat = pgd(lambda x: 0 * wavy(x), x, **options)
    assert np.array_equal(flat.x, x)


@pytest.mark.parametrize("norm", NORMS)
def test_an_input_has_its_own_eps_and_its_own_batch_mates_do_not_matter(norm):
    x = jax.random.uniform(jax.random.key(5), (3, 4))
    eps, step_size = np.float32([0, 0.1, 0.4]), np.float32([0.1, 0.05, 0.1])
    together = pgd(wavy, x, eps=eps, step_size=step_size, num_steps=4, norm=norm)
    for i in range(3):
        options = dict(eps=eps[i], step_size=step_size[i], num_steps=4, norm=norm)
        alone = pgd(wavy, x[i : i + 1], **options)
        np.testing.assert_allclose(together.x[i], alone.x[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 2, 2, 1), (0, 4)])
@pytest.mark.parametrize("norm", NORMS)
def test_inputs_of_any_rank(norm, shape):
    x = jnp.full(shape, 0.5)

    def loss(x):
        return x.sum(tuple(range(1, x.ndim)))

    attack = pgd(loss, x, eps=0.25, step_size=0.25, num_steps=1, norm=norm)
    move = 0.25 if norm == "linf" else 0.25 / np.sqrt(np.prod(shape[1:]))
    np.testing.assert_allclose(attack.x, x + move, rtol=1e-6)


# ---------------------------------------------------------------------------- goldens


@pytest.mark.parametrize(
    ("norm", "want"), [("linf", "linf_adv"), ("l2", "l2_adv"), ("l2", "l2_adv_foolbox")]
)
def test_runs_of_the_reference_toolkits(x64, digits, norm, want):
    d = digits("pgd")
    eps, step_size, num_steps = d.golden[f"{norm}_hyper"]
    attack = pgd(
        d.loss, d.x, eps=eps, step_size=step_size, num_steps=int(num_steps), norm=norm
    )
    np.testing.assert_allclose(attack.x, d.golden[want], rtol=0, atol=1e-7)
    np.testing.assert_allclose(attack.loss, d.golden[f"{norm}_loss"], rtol=1e-6)


def test_targeted_run_of_the_reference_toolkits(x64, digits):
    d = digits("pgd")
    eps, step_size, num_steps = d.golden["linf_hyper"]

    def towards(x):
        return -d.loss(x, d.golden["target"])

    attack = pgd(towards, d.x, eps=eps, step_size=step_size, num_steps=int(num_steps))
    want = d.golden["linf_targeted_adv"]
    np.testing.assert_allclose(attack.x, want, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------ composition


@pytest.mark.parametrize("norm", NORMS)
def test_jit_and_vmap_over_eps_agree_with_eager_and_trace_once(norm):
    x = jax.random.uniform(jax.random.key(6), (5, 3))
    traces = []

    def run(eps):
        options = dict(step_size=eps / 4, num_steps=5, norm=norm, keep_best=True)
        return pgd(wavy, x, eps=eps, **options)

    epss = jnp.array([0.0, 0.1, 0.5])
    together = jax.vmap(run)(epss)
    compiled = jax.jit(lambda eps: traces.append(1) or run(eps))
    for i, eps in enumerate(epss):
        want = run(eps)
        np.testing.assert_allclose(together.x[i], want.x, atol=1e-6)
        np.testing.assert_allclose(compiled(eps).x, want.x, atol=1e-6)
    assert len(traces) == 1


def test_restarts_by_vmap_over_keys():
    x = jax.random.uniform(jax.random.key(7), (6, 2))

    def run(key):
        return pgd(wavy, x, eps=0.5, step_size=0.1, num_steps=4, key=key)

    runs = jax.vmap(run)(jax.random.split(jax.random.key(8), 4))
    assert np.ptp(runs.loss, axis=0).min() > 1e-3  # every restart is another
    np.testing.assert_allclose(strongest(runs).loss, runs.loss.max(0))
    again = jax.vmap(run)(jax.random.split(jax.random.clone(jax.random.key(8)), 4))
    assert np.array_equal(runs.x, again.x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("keep_best", [False, True])
def test_shard_map_over_the_batch(conv_net, mesh, norm, keep_best):
    x = jax.random.uniform(jax.random.key(9), (16, 8, 8, 2))
    y = jnp.arange(16) % 3
    options = dict(step_size=0.05, num_steps=3, norm=norm, keep_best=keep_best)

    def run(kernel, x, y, eps, key):
        def loss(x):
            log_p = jax.nn.log_softmax(conv_net._replace(kernel=kernel).logits(x))
            return -jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]

        return pgd(loss, x, eps=eps, key=key, **options)

    eps = jnp.linspace(0, 0.2, 16)
    specs = (P(), P("data"), P("data"), P("data"), P())
    spread = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P("data"))
    got = jax.jit(spread)(conv_net.kernel, x, y, eps, None)
    want = run(conv_net.kernel, x, y, eps, None)
    np.testing.assert_allclose(got.x, want.x, atol=1e-5)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-4)
    noisy = jax.jit(spread)(conv_net.kernel, x, y, eps, jax.random.key(10))
    moved = length(noisy.x - x, norm)
    assert np.all(moved <= eps * (1 + 1e-6)) and np.all(moved[1:] > 0)


def test_inside_a_training_loss_no_gradient_passes(conv_net):
    x = jax.random.uniform(jax.random.key(12), (4, 8, 8, 2))

    def attack(net):
        options = dict(eps=0.1, step_size=0.05, num_steps=3)
        return pgd(lambda x: -net.logits(x)[:, 0], x, **options)

    def train(net, adv):
        return (net.logits(adv) ** 2).mean()

    got = jax.jit(jax.grad(lambda net: train(net, attack(net).x)))(conv_net)
    want = jax.grad(train)(conv_net, attack(conv_net).x)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)
    through = jax.grad(lambda net: attack(net).x.sum() + attack(net).loss.sum())
    zeros = jax.tree.map(jnp.zeros_like, conv_net)
    chex.assert_trees_all_equal(through(conv_net), zeros)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtype_follows_x(x64, dtype):
    x = jnp.full((2, 3), 0.5, dtype)
    attack = pgd(wavy, x, eps=0.25, step_size=0.25, num_steps=2, keep_best=True)
    assert attack.x.dtype == x.dtype and attack.loss.dtype == x.dtype


@pytest.mark.optimized
def test_no_convolution_in_the_loop_has_a_layout_that_is_slow_on_the_cpu(conv_net):
    """XLA's CPU backend is 4 times slower on others inside a loop."""
    x = jnp.full((4, 8, 8, 2), 0.5)

    def attack(x):
        options = dict(eps=0.1, step_size=0.1, num_steps=3)
        return pgd(lambda x: conv_net.logits(x)[:, 0], x, **options).x

    text = jax.jit(attack).lower(x).compile().as_text()
    lines = [line for line in text.splitlines() if " convolution(" in line]
    assert len(lines) >= 2 and "while" in text
    assert all("dim_labels=b01f_01io->b01f" in line for line in lines)


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "error", "hint"),
    [
        (dict(loss=lambda x: wavy(x).sum()), ValueError, r"loss\(x\) is float32\[\]"),
        (dict(loss=lambda x: x), ValueError, r"shape \(2,\): do not reduce"),
        (dict(loss=lambda x: 3.0), ValueError, "loss.*float 3.0"),
        (dict(x=jnp.ones((2, 3), int)), TypeError, "int.*cast it"),
        (dict(x=jnp.full((2, 3), 7.0)), ValueError, "outside bounds.*clip x"),
        (dict(norm="l7"), ValueError, "l7.*l2"),
        (dict(eps=-1.0), ValueError, "eps is -1.0"),
        (dict(eps=jnp.ones((2, 3))), ValueError, r"eps is float32\[2,3\]"),
        (dict(step_size=-1.0), ValueError, "step_size is -1.0"),
        (dict(num_steps=2.5), TypeError, "num_steps.*Python int"),
        (dict(num_steps=-1), ValueError, "num_steps is -1"),
        (dict(key=0), TypeError, r"jax\.random\.key\(0\)"),
        (dict(bounds=(1.0, 0.0)), ValueError, "low < high"),
    ],
)
def test_errors(change, error, hint):
    options = dict(loss=wavy, x=jnp.ones((2, 3)), eps=0.1, step_size=0.1, num_steps=1)
    options |= change
    with pytest.raises(error, match=hint):
        pgd(options.pop("loss"), options.pop("x"), **options)
